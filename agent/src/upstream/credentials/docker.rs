//! The Docker `config.json` of the agent, which is read again when it changes.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use oci::{CredentialsError, DockerConfig};
use parking_lot::Mutex;

/// Shortest time between two checks of a file for changes.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A file that is read again when it changes, which `docker login` and mounted secrets do.
#[derive(Debug)]
pub struct DockerFile {
    path: PathBuf,
    state: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    stamp: Option<Stamp>,
    looked: Instant,
    config: Arc<DockerConfig>,
}

/// Changes whenever the file is written or swapped.
type Stamp = (u64, u64, i64, i64);

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

impl DockerFile {
    /// Reads the file for the first time.
    pub fn open(path: &Path) -> Result<Self, CredentialsError> {
        let stamp = std::fs::metadata(path).ok().as_ref().map(stamp);
        let config = Arc::new(DockerConfig::read(path)?);
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(Loaded { stamp, looked: Instant::now(), config }),
        })
    }

    /// The current configuration. A file that becomes unreadable keeps its last content. Blocks for a `stat`,
    /// rarely for a small read.
    pub fn config(&self) -> Arc<DockerConfig> {
        let mut state = self.state.lock();
        if state.looked.elapsed() < LOOK_EVERY {
            return state.config.clone();
        }
        state.looked = Instant::now();
        let now = std::fs::metadata(&self.path).ok().as_ref().map(stamp);
        if now.is_some() && now != state.stamp {
            match DockerConfig::read(&self.path) {
                Ok(config) => {
                    tracing::info!(path = %self.path.display(), "credentials changed: read them again");
                    state.config = Arc::new(config);
                    state.stamp = now;
                }
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "cannot use changed credentials: keeping the earlier ones");
                }
            }
        }
        state.config.clone()
    }
}

#[cfg(test)]
mod tests {
    use oci::{Login, docker::Source};

    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "compared with what a look-up gives")]
    fn password(user: &str, secret: &str) -> Option<Source> {
        Some(Source::Login(Login::Password { user: user.into(), secret: secret.into() }))
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_keeps_its_last_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let write = |secret: &str| {
            std::fs::write(
                &path,
                format!(r#"{{"auths":{{"r.test":{{"username":"u","password":"{secret}"}}}}}}"#),
            )
            .unwrap();
        };
        write("one");
        let file = DockerFile::open(&path).unwrap();
        let now = || {
            file.state.lock().looked -= LOOK_EVERY;
            file.config().source(&"r.test".parse().unwrap(), &"a".parse().unwrap())
        };
        assert_eq!(now(), password("u", "one"));
        write("second");
        assert_eq!(now(), password("u", "second"));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(now(), password("u", "second"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(now(), password("u", "second"));
    }
}
