//! The controller inside the test process, in a runtime of its own that can end as a crash does.

use std::{net::SocketAddr, path::Path};

use hearth_agent::{app::ControllerApp, config::Config};
use tokio::{runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{agent::AgentConfig, metrics::Metrics};

/// One process of the controller. Dropping it ends it as a crash does.
#[derive(Debug)]
pub struct Controller {
    /// Where it serves probes and metrics.
    pub admin: SocketAddr,
    stop: CancellationToken,
    task: Option<JoinHandle<Result<(), String>>>,
    runtime: Option<Runtime>,
}

impl Controller {
    /// Starts one with the configuration that agents have.
    pub fn start(config: &AgentConfig) -> Self {
        let yaml = config.yaml(Path::new("/nonexistent"));
        let parsed = Config::from_yaml(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("threads can be started");
        let app = {
            let _entered = runtime.enter();
            ControllerApp::build(parsed).expect("a free port and a cluster")
        };
        let (admin, stop) = (app.address(), CancellationToken::new());
        let token = stop.clone();
        let task = runtime.spawn(async move { app.run(token).await.map_err(|error| error.to_string()) });
        Self { admin, stop, task: Some(task), runtime: Some(runtime) }
    }

    /// Ends it as a signal does: it releases its lease.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let task = self.task.take().expect("it was started");
        task.await.expect("the controller does not panic").expect("it ends without an error");
    }

    /// Its metrics now.
    pub async fn metrics(&self) -> Metrics {
        Metrics::scrape(self.admin).await.expect("the admin listener answers")
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
