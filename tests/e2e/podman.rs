//! Pulls through the agent with podman.

use anyhow::Result;
use kit::runtime::{ContainersTools, Mirror};

use crate::support::{Agent, Image, REGISTRY, Upstream};

#[tokio::test]
async fn a_pulled_image_has_upstreams_digest_and_was_read_once() -> Result<()> {
    let image = Image::built().await?;
    let upstream = Upstream::start(&image.storage, None).await?;
    let agent = Agent::start(upstream.proxy.address()).await?;
    let tools = ContainersTools::new(Mirror { registry: REGISTRY, agent: agent.mirror })?;

    tools.podman_pull(&image.name()).await?;

    // The client checks every blob against its digest; the digest of the manifest covers them all.
    assert_eq!(tools.podman_digest(&image.name()).await?, image.manifest.digest);
    upstream.assert_was_read_once(&image);
    Ok(())
}
