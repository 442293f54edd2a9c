//! A parent of imgproxy: fetch every layer of an image, with tokio and hyper.
//!
//!     parent [--output DIR] IMAGE [OPTIONS OF IMGPROXY]

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::{io::OwnedFd, net::UnixStream, process::ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{exit, Output, Stdio};

use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::{handshake, SendRequest};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::{digest::DynDigest, Sha256, Sha512};
use tokio::process::{Child, Command};
use tokio::runtime::Builder;

const SOURCE_LOST: i32 = 5; // exit status of imgproxy
const TRY_AGAIN: i32 = 75; // exit status of this program: EX_TEMPFAIL of sysexits.h

/// A failure; `retryable` means that another try may succeed.
struct Failure {
    message: String,
    retryable: bool,
}

impl<T: ToString> From<T> for Failure {
    fn from(error: T) -> Self {
        Failure {
            message: error.to_string(),
            retryable: false,
        }
    }
}

type Proxy = SendRequest<Empty<Bytes>>;

/// Start imgproxy on one half of a socket pair; return the child and the other half.
fn start(image: &str, options: &[String]) -> Result<(Child, UnixStream), Failure> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let program = env::var("IMGPROXY").unwrap_or_else(|_| "imgproxy".into());
    let child = Command::new(&program)
        .arg("--sockfd=0") // any descriptor would do, but standard input needs no unsafe code
        .args(options)
        .arg(image)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|_| format!("cannot start {program}"))?;
    Ok((child, ours))
}

/// Send a request, and return the reply, with its body unread, if it succeeds.
async fn ask(proxy: &mut Proxy, method: &str, path: &str) -> Result<Response<Incoming>, Failure> {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("Host", "imgproxy").body(Empty::new())?;
    let no_reply = |_| format!("{path}: no reply");
    proxy.ready().await.map_err(no_reply)?;
    let reply = proxy.send_request(request).await.map_err(no_reply)?;
    let status = reply.status();
    if status == StatusCode::OK {
        return Ok(reply);
    }
    let error = &document(reply, path).await?["errors"][0];
    let [code, message] = ["code", "message"].map(|name| error[name].as_str().unwrap_or("?"));
    Err(Failure {
        message: format!("{path}: {} {code}: {message}", status.as_u16()),
        retryable: error["detail"]["retryable"] == true,
    })
}

/// Read a body of JSON.
async fn document(reply: Response<Incoming>, path: &str) -> Result<Value, Failure> {
    let body = reply.into_body().collect().await;
    let body = body.map_err(|_| format!("{path}: short body"))?;
    Ok(serde_json::from_slice(&body.to_bytes())?)
}

fn about(path: &Path, error: io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Replace the last line of a terminal.
fn progress(line: &str) {
    // From Rust 1.70 on, std::io::IsTerminal does this without unsafe code.
    if unsafe { libc::isatty(libc::STDERR_FILENO) } == 1 {
        eprint!("\r\x1b[K{line}");
    }
}

/// Hash a blob, write it to a file, and return its size.
async fn fetch(proxy: &mut Proxy, digest: &str, output: &Path) -> Result<u64, Failure> {
    let path = format!("/blobs/{digest}");
    let mut body = ask(proxy, "GET", &path).await?.into_body();
    let expected = body.size_hint().exact().unwrap_or(0);
    let (algorithm, hexadecimal) = digest.split_once(':').unwrap_or_default();
    let mut hash: Box<dyn DynDigest> = match algorithm {
        "sha512" => Box::new(Sha512::default()),
        _ => Box::new(Sha256::default()),
    };
    // No other task is running meanwhile, so blocking writes do no harm.
    let mut file = File::create(output).map_err(|error| about(output, error))?;
    let (mut received, mut shown) = (0, 0);
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(chunk) = frame.data_ref() {
            received += chunk.len() as u64;
            hash.update(chunk);
            file.write_all(chunk)
                .map_err(|error| about(output, error))?;
            if shown != 100 * received / expected {
                shown = 100 * received / expected;
                progress(&format!("{digest:.19} {shown} %"));
            }
        }
    }
    progress("");
    if received != expected {
        return Err(format!("{path}: short body, {received} of {expected} bytes").into());
    }
    let hashed = hash.finalize();
    let hashed: String = hashed.iter().map(|byte| format!("{byte:02x}")).collect();
    if hashed != hexadecimal {
        return Err(format!("{path}: does not match its digest").into());
    }
    Ok(received)
}

/// Save a blob in a directory, where only a complete file gets its name.
async fn save(proxy: &mut Proxy, digest: &str, directory: &Path) -> Result<u64, Failure> {
    let file = directory.join(digest.replace(':', "-"));
    let part = PathBuf::from(format!("{}.part", file.display()));
    let size = fetch(proxy, digest, &part).await;
    match size {
        Ok(_) => fs::rename(part, file)?,
        Err(_) => drop(fs::remove_file(part)), // which may not exist yet
    }
    size
}

/// Print the parts of the image, and fetch its layers.
async fn list(ours: UnixStream, directory: Option<&Path>) -> Result<(), Failure> {
    if let Some(directory) = directory {
        fs::create_dir_all(directory).map_err(|error| about(directory, error))?;
    }
    let io = TokioIo::new(tokio::net::UnixStream::from_std(ours)?);
    let (mut proxy, connection) = handshake(io).await?;
    tokio::spawn(connection);
    let reply = ask(&mut proxy, "GET", "/manifest").await?;
    let digest = reply.headers().get("Manifest-Digest").cloned();
    let digest = digest.as_ref().and_then(|value| value.to_str().ok());
    let manifest = document(reply, "/manifest").await?;
    let config = &manifest["config"];
    println!("manifest {}", digest.unwrap_or("?"));
    println!(
        "config {} {} bytes",
        text(&config["digest"]),
        config["size"]
    );
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let digest = text(&layer["digest"]);
        let size = match directory {
            Some(directory) => save(&mut proxy, digest, directory).await?,
            None => fetch(&mut proxy, digest, Path::new("/dev/null")).await?,
        };
        println!("layer {digest} {size} bytes");
    }
    ask(&mut proxy, "POST", "/quit").await?;
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Report how imgproxy failed, with the last line of its standard error.
fn report(ended: &Output) {
    let how = match ended.status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit status {}", ended.status.code().unwrap_or_default()),
    };
    let diagnostics = String::from_utf8_lossy(&ended.stderr);
    match diagnostics.lines().last() {
        Some(line) => eprintln!("imgproxy: {how}: {line}"),
        None => eprintln!("imgproxy: {how}"),
    }
}

async fn run(image: &str, directory: Option<&Path>, options: &[String]) -> Result<i32, Failure> {
    let (child, ours) = start(image, options)?;
    let ended = tokio::spawn(child.wait_with_output()); // which reads its standard error meanwhile
    let result = list(ours, directory).await; // which closes the connection at its end
    if let Err(failure) = &result {
        eprintln!("failed: {}", failure.message);
    }
    let ended = ended.await??; // imgproxy ends without a connection
    if !ended.status.success() {
        report(&ended);
    }
    let retryable = matches!(&result, Err(failure) if failure.retryable);
    if retryable || ended.status.code() == Some(SOURCE_LOST) {
        return Ok(TRY_AGAIN);
    }
    Ok((result.is_err() || !ended.status.success()).into())
}

fn main() {
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    let mut directory = None;
    if arguments.len() > 1 && arguments[0] == "--output" {
        directory = arguments.drain(..2).nth(1).map(PathBuf::from);
    }
    if arguments.is_empty() || arguments[0].starts_with('-') {
        eprintln!("usage: parent [--output DIR] IMAGE [OPTIONS OF IMGPROXY]");
        exit(1);
    }
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let status = runtime.block_on(run(&arguments[0], directory.as_deref(), &arguments[1..]));
    exit(status.unwrap_or_else(|failure| {
        eprintln!("failed: {}", failure.message);
        1
    }));
}
