#!/usr/bin/env node
// A parent of imgproxy: fetch every layer of an image, with the standard library alone.
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

const SOURCE_LOST = 5; // exit status of imgproxy
const TRY_AGAIN = 75; // exit status of this program: EX_TEMPFAIL of sysexits.h

class Failed extends Error {
  constructor(message, retryable = false) {
    super(message);
    this.retryable = retryable;
  }
}

// An imgproxy process, and our half of the socket pair that it serves.
class Proxy {
  static async start(image, options) {
    const program = process.env.IMGPROXY || 'imgproxy';
    // A pipe of Node is a pair of connected Unix sockets; the second one is descriptor 3.
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
    this.socket.on('error', () => {}); // pending requests report the error
    this.agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    // Used only once: a second request on a closed socket would neither end nor fail.
    let used = false;
    this.agent.createConnection = (_options, done) => {
      if (used) return void done(new Error('the connection is closed'));
      used = true;
      return this.socket;
    };
    this.diagnostics = '';
    child.stderr.setEncoding('utf8').on('data', (text) => (this.diagnostics += text));
    this.ended = once(child, 'close'); // [exit status, signal], after the end of stderr
  }

  // Send a request, and return the reply, with its body unread, if it succeeds.
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

  // Hash a blob, save it if there is a directory, and return its size.
  async fetch(digest, directory) {
    const target = `/blobs/${digest}`;
    const reply = await this.ask('GET', target);
    const expected = Number(reply.headers['content-length']);
    const [algorithm, hexadecimal] = digest.split(':');
    const hash = createHash(algorithm);
    // Safe as a file name from here on: imgproxy refuses a malformed digest.
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
      if (file) await fs.rename(part, file); // only a complete file gets its name
    } finally {
      await output.close();
      if (part) await fs.rm(part, { force: true });
    }
    return received;
  }
}

// Yield the parts of a body up to its end, which may be premature.
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
function progress(line) {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${line}`);
}

// Print the parts of the image, and fetch its layers.
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
  let args = process.argv.slice(2);
  let directory;
  if (args[0] === '--output' && args.length > 1) [, directory, ...args] = args;
  const [image, ...options] = args;
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
  proxy.socket.destroy(); // which ends imgproxy, too
  const [status, signal] = await proxy.ended;
  if (status !== 0) {
    const how = signal ? `killed by signal ${os.constants.signals[signal]}` : `exit status ${status}`;
    const last = proxy.diagnostics.trim().split('\n').at(-1);
    console.error(`imgproxy: ${how}${last && ': '}${last}`);
  }
  if (failure?.retryable || status === SOURCE_LOST) return TRY_AGAIN;
  return failure || status !== 0 ? 1 : 0;
}

main().then((status) => (process.exitCode = status));
