//! The only place that starts tasks: each has a name in the logs and is awaited at shutdown.

use std::future::Future;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::trace;

/// Starts tasks and tracks when all of them have ended. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tasks(TaskTracker);

impl Tasks {
    /// Starts a task under a name.
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let work = trace::inherited(future).instrument(tracing::info_span!("task", task = name));
        tokio::spawn(self.0.track_future(work))
    }

    /// Waits until every task has ended; none may be started after that.
    pub async fn finished(&self) {
        self.0.close();
        self.0.wait().await;
    }
}
