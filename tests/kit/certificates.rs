//! An authority of the test's own, and certificates that it signs, by the real `openssl`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// Of the keys: quick to make.
const KEY: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// An authority in a directory: `<name>.pem` and `<name>.key`.
#[derive(Clone, Debug)]
pub struct Authority {
    directory: PathBuf,
    name: String,
}

impl Authority {
    /// Makes one.
    pub fn new(directory: &Path, name: &str) -> Result<Self> {
        let this = Self { directory: directory.to_owned(), name: name.to_owned() };
        let subject = format!("/CN={name}");
        let (key, pem) = (format!("{name}.key"), format!("{name}.pem"));
        let what = ["-nodes", "-days", "2", "-subj", &subject, "-keyout", &key, "-out", &pem];
        this.openssl(["req", "-x509"].into_iter().chain(KEY).chain(what))?;
        Ok(this)
    }

    /// Its certificate.
    pub fn certificate(&self) -> PathBuf {
        self.path(&format!("{}.pem", self.name))
    }

    /// A file of its directory.
    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// Signs `<file>.pem` with `<file>.key` for alternative names in openssl's words (`DNS:localhost,IP:127.0.0.1`).
    pub fn sign(&self, file: &str, names: &str) -> Result<()> {
        let (subject, extensions) = (format!("/CN={file}"), format!("{file}.names"));
        let (key, csr, pem) = (format!("{file}.key"), format!("{file}.csr"), format!("{file}.pem"));
        fs::write(self.path(&extensions), format!("subjectAltName={names}\n"))?;
        let what = ["-nodes", "-subj", &subject, "-keyout", &key, "-out", &csr];
        self.openssl(["req"].into_iter().chain(KEY).chain(what))?;
        let (authority, secret) = (format!("{}.pem", self.name), format!("{}.key", self.name));
        let by = ["-CA", &authority, "-CAkey", &secret, "-CAcreateserial", "-extfile", &extensions];
        let what = ["-in", &csr, "-out", &pem];
        self.openssl(["x509", "-req", "-days", "2"].into_iter().chain(by).chain(what))
    }

    fn openssl<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let output = Command::new("openssl").current_dir(&self.directory).args(arguments).output();
        let output = output.context("`openssl` cannot be started")?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}
