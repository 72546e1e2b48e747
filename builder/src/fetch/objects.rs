//! Files in object stores (`s3`, `gs`, `abfs`) and in HDFS: found and read as streams from any offset.
//!
//! | scheme | how it is reached |
//! | --- | --- |
//! | `s3://BUCKET/KEY`, `s3a://` | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT`, `AWS_ALLOW_HTTP`, `AWS_SKIP_SIGNATURE`, web identity, the container's or the machine's role |
//! | `gs://BUCKET/KEY` | `GOOGLE_SERVICE_ACCOUNT`, `GOOGLE_APPLICATION_CREDENTIALS`, the machine's account |
//! | `abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH`, `abfss://`, `az://` | `AZURE_STORAGE_ACCOUNT_KEY`, `AZURE_STORAGE_SAS_KEY`, client secrets, workload identity |
//! | `hdfs://NAMENODE:PORT/PATH`, `hdfs://NAMESERVICE/PATH` | `HADOOP_CONF_DIR`, `HADOOP_USER_NAME`, Kerberos tickets (loads `libgssapi_krb5` when the cluster asks for it) |
//!
//! Nothing is tried again here and no time-out is set but for connecting: the caller does both, for all downloads alike.

use std::{error::Error, fmt, sync::Arc};

use bytes::Bytes;
use futures_util::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use hdfs_native::{ClientBuilder, HdfsError};
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, ObjectStoreScheme, RetryConfig,
    aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, path::Path,
};
use reqwest::Url;

use crate::retry;

/// Schemes that are read here.
pub const SCHEMES: [&str; 7] = ["s3", "s3a", "gs", "az", "abfs", "abfss", "hdfs"];

/// Why an object cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The store cannot be reached as it is configured.
    #[error("it cannot be reached as this environment is set up")]
    Setup(#[source] Cause),
    /// There is no such object, or nobody may read it.
    #[error("its store refuses to give it")]
    Refused(#[source] Cause),
    /// Something on the way failed.
    #[error("its store or the way there fails")]
    Failed(#[source] Cause),
}

/// What a library says.
pub type Cause = Box<dyn Error + Send + Sync>;

impl ObjectError {
    /// Whether the same may succeed a moment later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

/// An object that was found.
pub struct Object {
    place: Place,
    /// Its bytes.
    pub size: u64,
}

enum Place {
    Store(Arc<dyn ObjectStore>, Path),
    Hdfs(Box<hdfs_native::file::FileReader>),
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("size", &self.size).finish_non_exhaustive()
    }
}

/// Whether a URL is read here.
pub fn is_object(url: &str) -> bool {
    url.split_once("://").is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
}

impl Object {
    /// Looks for an object and its size.
    pub async fn find(url: &str) -> Result<Self, ObjectError> {
        let url = Url::parse(url).map_err(|error| ObjectError::Setup(error.into()))?;
        if url.scheme() == "hdfs" {
            return Self::find_in_hdfs(&url).await;
        }
        let (store, path) = store(&url).map_err(|error| ObjectError::Setup(error.into()))?;
        let size = store.head(&path).await.map_err(of_store)?.size;
        Ok(Self { place: Place::Store(store, path), size })
    }

    async fn find_in_hdfs(url: &Url) -> Result<Self, ObjectError> {
        let mut builder = ClientBuilder::new();
        // Without a name node the configuration's default file system is meant.
        if url.has_host() {
            let mut root = url.clone();
            root.set_path("");
            builder = builder.with_url(root.as_str().trim_end_matches('/'));
        }
        let client = builder.build().map_err(|error| ObjectError::Setup(error.into()))?;
        let file = client.read(url.path()).await.map_err(of_hdfs)?;
        let size = file.file_length() as u64;
        Ok(Self { place: Place::Hdfs(Box::new(file)), size })
    }

    /// Its bytes from an offset, which is not beyond its end.
    pub async fn read(
        &self,
        from: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, ObjectError>>, ObjectError> {
        if from >= self.size {
            return Ok(stream::empty().boxed());
        }
        match &self.place {
            Place::Store(store, path) => {
                // Some stores refuse a range over everything of an object that they keep compressed.
                let range = (from > 0).then_some(GetRange::Offset(from));
                let options = GetOptions { range, ..GetOptions::default() };
                let answer = store.get_opts(path, options).await.map_err(of_store)?;
                Ok(answer.into_stream().map_err(of_store).boxed())
            }
            Place::Hdfs(file) => {
                let offset =
                    |bytes: u64| usize::try_from(bytes).map_err(|error| ObjectError::Setup(error.into()));
                let stream = file.read_range_stream(offset(from)?, offset(self.size - from)?);
                Ok(stream.map_err(of_hdfs).boxed())
            }
        }
    }
}

/// The store of a URL, with what the environment says of its kind.
fn store(url: &Url) -> object_store::Result<(Arc<dyn ObjectStore>, Path)> {
    let (scheme, path) = ObjectStoreScheme::parse(url)?;
    // Names are matched as the libraries of the clouds do; the library's own `from_env` would take its client along.
    macro_rules! build {
        ($builder:ty, $prefix:literal) => {{
            let mut builder = <$builder>::new().with_client_options(options()).with_retry(no_retries());
            for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with($prefix)) {
                if let Ok(key) = name.to_ascii_lowercase().parse() {
                    builder = builder.with_config(key, value);
                }
            }
            Arc::new(builder.with_url(url.as_str()).build()?)
        }};
    }
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::AmazonS3 => build!(AmazonS3Builder, "AWS_"),
        ObjectStoreScheme::GoogleCloudStorage => build!(GoogleCloudStorageBuilder, "GOOGLE_"),
        _ => build!(MicrosoftAzureBuilder, "AZURE_"),
    };
    Ok((store, path))
}

fn options() -> ClientOptions {
    let agent = concat!("hearth/", env!("CARGO_PKG_VERSION"));
    let agent = agent.parse().expect("a name and a version are a header's value");
    ClientOptions::new()
        .with_user_agent(agent)
        .with_connect_timeout(retry::CONNECT_TIMEOUT)
        .with_timeout_disabled()
        .with_read_timeout(retry::STALL_TIMEOUT)
}

/// The caller tries again, says so, and goes on where it was.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn of_store(error: object_store::Error) -> ObjectError {
    use object_store::Error as Store;
    match error {
        error @ (Store::NotFound { .. } | Store::PermissionDenied { .. } | Store::Unauthenticated { .. }) => {
            ObjectError::Refused(error.into())
        }
        error @ (Store::InvalidPath { .. } | Store::UnknownConfigurationKey { .. }) => {
            ObjectError::Setup(error.into())
        }
        error => ObjectError::Failed(error.into()),
    }
}

fn of_hdfs(error: HdfsError) -> ObjectError {
    match error {
        error @ (HdfsError::IOError(_)
        | HdfsError::DataTransferError(_)
        | HdfsError::ChecksumError
        | HdfsError::OperationFailed(_)
        | HdfsError::BlocksNotFound(_)
        | HdfsError::InvalidRPCResponse(_)) => ObjectError::Failed(error.into()),
        error @ (HdfsError::UrlParseError(_)
        | HdfsError::InvalidArgument(_)
        | HdfsError::XmlParseError(_)
        | HdfsError::NoSASLMechanism) => ObjectError::Setup(error.into()),
        error => ObjectError::Refused(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_urls_are_known_by_their_scheme() {
        for url in ["s3://bucket/a", "abfss://c@account.dfs.core.windows.net/a", "hdfs://name/a", "gs://b/a"]
        {
            assert!(is_object(url), "{url}");
        }
        for url in ["https://files.example.com/a", "file:///a", "s3", "s3:/a"] {
            assert!(!is_object(url), "{url}");
        }
    }

    #[test]
    fn each_scheme_has_its_store_and_its_path() {
        for (url, path) in [
            ("s3://bucket/a/b%20c.jar", "a/b c.jar"),
            ("s3a://bucket/a", "a"),
            ("gs://bucket/a/b", "a/b"),
            ("abfs://container@account.dfs.core.windows.net/a/b", "a/b"),
            ("az://container@account.dfs.core.windows.net/a/b", "a/b"),
        ] {
            let (_, found) = store(&url.parse().unwrap()).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(found.as_ref(), path, "{url}");
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let missing = object_store::Error::NotFound { path: "a".to_owned(), source: "404".into() };
        assert!(!of_store(missing).may_pass());
        let broken = object_store::Error::Generic { store: "S3", source: "reset".into() };
        assert!(of_store(broken).may_pass());
        assert!(of_hdfs(HdfsError::IOError(std::io::Error::other("reset"))).may_pass());
        assert!(!of_hdfs(HdfsError::FileNotFound("a".to_owned())).may_pass());
    }
}
