#!/usr/bin/env node
// A parent of imgproxy: fetch every layer of an image. The standard library alone.
//
//     parent.js [--output DIR] IMAGE [OPTIONS OF IMGPROXY]
'use strict';

const { spawn } = require('node:child_process');
const { createHash } = require('node:crypto');
const { once } = require('node:events');
const fs = require('node:fs/promises');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');

const LOST_ITS_SOURCE = 5; // exit status of imgproxy
const TRY_AGAIN = 75; // exit status of ours: EX_TEMPFAIL of sysexits.h

class Failed extends Error {
  constructor(message, retryable = false) {
    super(message);
    this.retryable = retryable;
  }
}

// An imgproxy process, and our end of the socket that it serves.
class Proxy {
  static async start(image, options) {
    const program = process.env.IMGPROXY || 'imgproxy';
    // What Node calls a pipe is a pair of connected Unix sockets; this one is descriptor 3.
    const child = spawn(program, ['--sockfd=3', ...options, image], {
      stdio: ['inherit', 'inherit', 'pipe', 'pipe'],
    });
    await once(child, 'spawn').catch(() => {
      throw new Failed(`cannot start ${program}`);
    });
    return new Proxy(child);
  }

  constructor(child) {
    this.socket = child.stdio[3];
    this.socket.on('error', () => {}); // whoever waits for a reply is told
    this.agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    // Given once: a second request on a socket that is gone would never end, nor fail.
    let given = false;
    this.agent.createConnection = (_options, done) => {
      if (given) return void done(new Error('the connection is gone'));
      given = true;
      return this.socket;
    };
    this.words = '';
    child.stderr.setEncoding('utf8').on('data', (text) => (this.words += text));
    this.ended = once(child, 'close'); // [exit status, signal], once stderr is read to its end
  }

  // Give the reply to a request that succeeds; its body is still to be read.
  async ask(method, target) {
    const request = http.request({ agent: this.agent, method, path: target });
    const replied = once(request.end(), 'response');
    const [reply] = await replied.catch(() => {
      throw new Failed(`${target}: no reply`);
    });
    if (reply.statusCode === 200) return reply;
    const { code, message, detail } = JSON.parse(await text(reply)).errors[0];
    throw new Failed(`${target}: ${reply.statusCode} ${code}: ${message}`, detail.retryable);
  }

  // Hash a blob, save it if there is a directory, and give its size.
  async fetch(digest, directory) {
    const target = `/blobs/${digest}`;
    const reply = await this.ask('GET', target);
    const expected = Number(reply.headers['content-length']);
    const [algorithm, hexadecimal] = digest.split(':');
    const hash = createHash(algorithm);
    // Safe as a name from here on: imgproxy would not have answered to one that is no digest.
    const file = directory && path.join(directory, `${algorithm}-${hexadecimal}`);
    const part = file && `${file}.part`;
    const output = await fs.open(part || os.devNull, 'w');
    let received = 0;
    try {
      for await (const chunk of pieces(reply)) {
        received += chunk.length;
        hash.update(chunk);
        await output.writeFile(chunk);
        progress(`${digest.slice(0, 19)} ${Math.floor((100 * received) / expected)} %`);
      }
      progress('');
      if (received !== expected) {
        throw new Failed(`${target}: short body, ${received} of ${expected} bytes`);
      }
      if (hash.digest('hex') !== hexadecimal) {
        throw new Failed(`${target}: does not match its digest`);
      }
      if (file) await fs.rename(part, file); // it has its name from when it is whole
    } finally {
      await output.close();
      if (part) await fs.rm(part, { force: true });
    }
    return received;
  }
}

// Give a body piece by piece, to its end, which may be an early one.
async function* pieces(reply) {
  const iterator = reply[Symbol.asyncIterator]();
  for (;;) {
    const { value, done } = await iterator.next().catch(() => ({ done: true }));
    if (done) return;
    yield value;
  }
}

async function text(reply) {
  let body = '';
  for await (const chunk of reply.setEncoding('utf8')) body += chunk;
  return body;
}

// Replace the last line of a terminal.
function progress(words) {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${words}`);
}

// Print what the image consists of, and fetch its layers.
async function show(proxy, directory) {
  if (directory) await fs.mkdir(directory, { recursive: true });
  const reply = await proxy.ask('GET', '/manifest');
  const body = await text(reply).catch(() => {
    throw new Failed('/manifest: short body');
  });
  const { config, layers } = JSON.parse(body);
  console.log(`manifest ${reply.headers['manifest-digest']}`);
  console.log(`config ${config.digest} ${config.size} bytes`);
  for (const { digest } of layers) {
    console.log(`layer ${digest} ${await proxy.fetch(digest, directory)} bytes`);
  }
  (await proxy.ask('POST', '/quit')).resume();
}

async function main() {
  let words = process.argv.slice(2);
  let directory;
  if (words[0] === '--output' && words.length > 1) [, directory, ...words] = words;
  const [image, ...options] = words;
  if (!image || image.startsWith('-')) {
    console.error('usage: parent.js [--output DIR] IMAGE [OPTIONS OF IMGPROXY]');
    return 1;
  }
  let failure, proxy;
  try {
    proxy = await Proxy.start(image, options);
    await show(proxy, directory);
  } catch (error) {
    failure = error;
    console.error(`failed: ${error.message}`);
  }
  if (!proxy) return 1;
  proxy.socket.destroy(); // to hang up ends imgproxy, too
  const [status, signal] = await proxy.ended;
  if (status !== 0) {
    const how = signal ? `killed by signal ${os.constants.signals[signal]}` : `exit status ${status}`;
    const last = proxy.words.trim().split('\n').at(-1);
    console.error(`imgproxy: ${how}${last && ': '}${last}`);
  }
  if (failure?.retryable || status === LOST_ITS_SOURCE) return TRY_AGAIN;
  return failure || status !== 0 ? 1 : 0;
}

main().then((status) => (process.exitCode = status));
