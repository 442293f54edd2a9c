//! A client of skopeo's proxy: fetch all of each image as ostree-ext, bootc and composefs do.
//!
//!     skopeo-client [OPTIONS] REFERENCE...
//!
//! What arrived is printed as JSON, whatever failed of it: each blob by its size and its SHA-256.
//! The options are those of the library:
//!
//!     --program FILE            what is started in the place of skopeo in PATH
//!     --auth-data FILE          credentials, handed over as a descriptor
//!     --anonymous               no credentials
//!     --insecure                no verification of TLS
//!     --insecure-policy         any image is accepted
//!     --user-agent-prefix TEXT  what the User-Agent begins with
//!     --drop                    drop the proxy with a blob half read, and never finalize it

use std::env;
use std::fs::File;
use std::io;
use std::process::{exit, Command};

use containers_image_proxy::oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest};
use containers_image_proxy::{Error, ImageProxy, ImageProxyConfig, OpenedImage, Result};
use futures_util::future::join_all;
use serde_json::{json, Map, Value};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::join;

/// How often each layer is fetched at once.
const AT_ONCE: usize = 4;

/// The ways in which a layer is fetched to its end.
#[derive(Clone, Copy)]
enum Way {
    /// GetBlob, finished while it is read: ostree-ext
    Blob,
    /// GetBlob, finished after exactly its size was read: composefs
    Taken,
    /// GetRawBlob
    Raw,
    /// GetRawBlob, verified by the library
    Stream,
}

const WAYS: [(&str, Way); 4] = [
    ("blob", Way::Blob),
    ("taken", Way::Taken),
    ("raw", Way::Raw),
    ("stream", Way::Stream),
];

/// What a reader has read.
#[derive(Default)]
struct Content {
    size: u64,
    hash: Sha256,
}

impl Content {
    async fn read(&mut self, mut reader: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = reader.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            self.size += count as u64;
            self.hash.update(&buffer[..count]);
        }
    }

    /// Describe what arrived, and why it failed if it did.
    fn describe(self, result: Result<()>) -> Value {
        let mut value = outcome(result);
        value["size"] = self.size.into();
        value["sha256"] = hex::encode(self.hash.finalize()).into();
        value
    }
}

/// Describe a failure, or that there was none.
fn outcome(result: Result<()>) -> Value {
    match result {
        Ok(()) => json!({"failed": null}),
        Err(error) => json!({"failed": error.to_string(), "retryable": error.is_retryable()}),
    }
}

/// An image that is open, and its layers.
struct Opened {
    image: OpenedImage,
    layers: Vec<Descriptor>,
}

/// Fetch a layer to its end.
async fn fetch(proxy: &ImageProxy, image: &OpenedImage, layer: &Descriptor, way: Way) -> Value {
    let mut content = Content::default();
    let result = receive(proxy, image, layer, way, &mut content).await;
    content.describe(result)
}

async fn receive(
    proxy: &ImageProxy,
    image: &OpenedImage,
    layer: &Descriptor,
    way: Way,
    content: &mut Content,
) -> Result<()> {
    match way {
        Way::Blob => {
            let (reader, driver) = proxy.get_descriptor(image, layer).await?;
            let (read, driven) = join!(content.read(reader), driver);
            driven?;
            read?;
        }
        Way::Taken => {
            let (reader, driver) = proxy.get_descriptor(image, layer).await?;
            content.read(reader.take(layer.size())).await?;
            driver.await?;
        }
        Way::Raw => {
            let (size, reader, driver) = proxy.get_raw_blob(image, layer.digest()).await?;
            if size.is_some_and(|size| size != layer.size()) {
                return Err(Error::Other(format!("announced as {size:?} bytes").into()));
            }
            let (read, driven) = join!(content.read(reader), driver);
            driven?;
            read?;
        }
        Way::Stream => {
            let stream = proxy.get_blob_stream(image, layer.digest(), layer.size());
            let (reader, driver) = stream.await?.into_parts();
            let (read, driven) = join!(content.read(reader), driver);
            driven?;
            read?;
        }
    }
    Ok(())
}

/// Read the first byte of a layer, and close the reader.
async fn begin(mut reader: impl AsyncRead + Unpin, layer: &Descriptor) -> Result<()> {
    if layer.size() > 0 {
        reader.read_u8().await?;
    }
    Ok(())
}

/// Begin to read a layer, close the reader, and describe what is said of that.
async fn abandon(proxy: &ImageProxy, image: &OpenedImage, layer: &Descriptor) -> Value {
    let blob = async {
        let (reader, driver) = proxy.get_descriptor(image, layer).await?;
        begin(reader, layer).await?;
        driver.await
    };
    let raw = async {
        let (_, reader, driver) = proxy.get_raw_blob(image, layer.digest()).await?;
        begin(reader, layer).await?;
        Ok(driver.await?)
    };
    let (blob, raw) = join!(blob, raw);
    json!({"blob": outcome(blob), "raw": outcome(raw)})
}

/// Fetch the config as a blob: exactly its bytes, and only then what is said of it.
async fn config_blob(proxy: &ImageProxy, image: &OpenedImage, config: &Descriptor) -> Value {
    let mut content = Content::default();
    let result = async {
        let (mut reader, driver) = proxy.get_descriptor(image, config).await?;
        let mut buffer = vec![0; config.size() as usize];
        reader.read_exact(&mut buffer).await?;
        driver.await?;
        Ok(content.read(&buffer[..]).await?)
    };
    let result = result.await;
    content.describe(result)
}

/// Fetch an image in the order of ostree-ext; describe all of it but its layers.
async fn documents(proxy: &ImageProxy, image: OpenedImage) -> Result<(Value, Opened)> {
    let (digest, manifest) = proxy.fetch_manifest_raw_oci(&image).await?;
    let parsed: ImageManifest = serde_json::from_slice(&manifest)?;
    let config = proxy.fetch_config_raw(&image).await?;
    let configuration: ImageConfiguration = serde_json::from_slice(&config)?;
    let infos = proxy.get_layer_info(&image).await?.unwrap_or_default();
    let infos = infos.iter().map(|info| {
        let (digest, media_type) = (info.digest.to_string(), info.media_type.to_string());
        json!({"digest": digest, "size": info.size, "media_type": media_type})
    });
    let described = json!({
        "digest": digest,
        "manifest": String::from_utf8_lossy(&manifest),
        "config": String::from_utf8_lossy(&config),
        "diff_ids": configuration.rootfs().diff_ids(),
        "config_blob": config_blob(proxy, &image, parsed.config()).await,
        "layer_info": infos.collect::<Vec<_>>(),
    });
    let layers = parsed.layers().clone();
    Ok((described, Opened { image, layers }))
}

/// Open an image, and describe it; it stays open.
async fn open(proxy: &ImageProxy, reference: &str) -> (Value, Option<Opened>) {
    let present = match proxy.open_image_optional(reference).await {
        Ok(Some(image)) => outcome(proxy.close_image(&image).await),
        Ok(None) => "absent".into(),
        Err(error) => outcome(Err(error)),
    };
    let opened = async { documents(proxy, proxy.open_image(reference).await?).await };
    let (mut value, opened) = match opened.await {
        Ok((value, opened)) => (value, Some(opened)),
        Err(error) => (outcome(Err(error)), None),
    };
    value["optional"] = present;
    (value, opened)
}

/// Fetch the layers of an image one after the other, after some were abandoned.
async fn layers(proxy: &ImageProxy, opened: &Opened, value: &mut Value) {
    let mut abandoned = Vec::new();
    for layer in &opened.layers {
        abandoned.push(abandon(proxy, &opened.image, layer).await);
    }
    value["abandoned"] = abandoned.into();
    let mut fetched = Map::new();
    for (name, way) in WAYS {
        let mut layers = Vec::new();
        for layer in &opened.layers {
            layers.push(fetch(proxy, &opened.image, layer, way).await);
        }
        fetched.insert(name.into(), layers.into());
    }
    value["layers"] = fetched.into();
}

/// Fetch all layers of all images in all ways, several times, at once.
async fn together(proxy: &ImageProxy, images: &[Opened]) -> Value {
    let mut running = Vec::new();
    for _ in 0..AT_ONCE {
        for opened in images {
            for layer in &opened.layers {
                let ways = WAYS.iter();
                running.extend(ways.map(|(_, way)| fetch(proxy, &opened.image, layer, *way)));
            }
        }
    }
    join_all(running).await.into()
}

/// Begin to read the first layer of each image, drop everything, and return.
async fn drop_all(proxy: ImageProxy, images: &[Opened]) -> Result<()> {
    for opened in images {
        if let Some(layer) = opened.layers.first() {
            let (_, reader, _) = proxy.get_raw_blob(&opened.image, layer.digest()).await?;
            begin(reader, layer).await?;
        }
    }
    Ok(())
}

async fn run(config: ImageProxyConfig, references: &[String], drops: bool) -> Result<Value> {
    let proxy = ImageProxy::new_with_config(config).await?;
    let mut values = Vec::new();
    let mut images = Vec::new();
    for reference in references {
        let (value, opened) = open(&proxy, reference).await;
        values.push(value);
        images.extend(opened);
    }
    let protocol = proxy.protocol_version().to_string();
    if drops {
        drop_all(proxy, &images).await?;
        return Ok(json!({"protocol": protocol, "images": values}));
    }
    let with_layers = values
        .iter_mut()
        .filter(|value| value["manifest"].is_string());
    for (value, opened) in with_layers.zip(&images) {
        layers(&proxy, opened, value).await;
    }
    let together = together(&proxy, &images).await;
    for opened in &images {
        proxy.close_image(&opened.image).await?;
    }
    proxy.finalize().await?;
    Ok(json!({"protocol": protocol, "images": values, "together": together}))
}

fn main() {
    let mut config = ImageProxyConfig::default();
    let mut drops = false;
    let mut references = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("a value");
        match argument.as_str() {
            "--program" => config.skopeo_cmd = Some(Command::new(value())),
            "--auth-data" => config.auth_data = Some(File::open(value()).expect("credentials")),
            "--anonymous" => config.auth_anonymous = true,
            "--insecure" => config.insecure_skip_tls_verification = Some(true),
            "--insecure-policy" => config.insecure_policy = Some(true),
            "--user-agent-prefix" => config.user_agent_prefix = Some(value()),
            "--drop" => drops = true,
            _ => references.push(argument),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime");
    match runtime.block_on(run(config, &references, drops)) {
        Ok(value) => println!("{value}"),
        Err(error) => {
            eprintln!("failed: {error}");
            exit(1);
        }
    }
}
