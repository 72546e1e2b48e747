//! Copies through the agent with skopeo, the stand-in for CRI-O: the same library.

use anyhow::Result;
use kit::runtime::{ContainersTools, Mirror};

use crate::support::{Agent, Image, REGISTRY, Upstream, assert_same_bytes};

#[tokio::test]
async fn a_copy_has_upstreams_bytes_blob_by_blob() -> Result<()> {
    let image = Image::built().await?;
    let upstream = Upstream::start(&image.storage, None).await?;
    let agent = Agent::start(upstream.proxy.address()).await?;
    let tools = ContainersTools::new(Mirror { registry: REGISTRY, agent: agent.mirror })?;

    let copy = tools.skopeo_copy(&image.name(), "copy").await?;

    assert_same_bytes(&image.upstream_file(&image.manifest), &copy.join("manifest.json"))?;
    for blob in image.config_and_layers() {
        assert_same_bytes(&image.upstream_file(blob), &copy.join(blob.digest.trim_start_matches("sha256:")))?;
    }
    upstream.assert_was_read_once(&image);

    // Again, from the node's disk.
    upstream.proxy.clear();
    tools.skopeo_copy(&image.name(), "again").await?;
    assert_eq!(upstream.proxy.blob_gets().len(), 0, "{:?}", upstream.proxy.blob_gets());
    Ok(())
}
