//! nginx with `sendfile`, serving plain files: what the kernel can do.

use std::{fs, path::Path, process::Command};

use anyhow::Result;
use kit::runtime::Daemon;

use super::{Contestant, accepting, free_port};

/// Serves the files below `work/nginx/root`.
pub(crate) async fn start(work: &Path) -> Result<Contestant> {
    let dir = work.join("nginx");
    fs::create_dir_all(dir.join("root"))?;
    let address = free_port()?;
    let shown = dir.display();
    // The workers must read a folder that only its owner may enter; without root the line means nothing.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let config = format!(
        "{user}
daemon off;
worker_processes 2;
pid {shown}/pid;
error_log {shown}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  client_body_temp_path {shown}/body;
  proxy_temp_path {shown}/proxy;
  fastcgi_temp_path {shown}/fastcgi;
  uwsgi_temp_path {shown}/uwsgi;
  scgi_temp_path {shown}/scgi;
  server {{ listen {address}; root {shown}/root; default_type application/octet-stream; }}
}}
"
    );
    let path = dir.join("nginx.conf");
    fs::write(&path, config)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&dir).arg("-e").arg(dir.join("error.log")).arg("-c").arg(&path);
    let mut daemon = Daemon::start(&mut command, &dir.join("log"))?;
    accepting(&mut daemon, address).await?;
    Ok(Contestant::rival("nginx", address, daemon))
}
