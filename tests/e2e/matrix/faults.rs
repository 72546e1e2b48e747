//! Pulls under each single fault of the registry behind the agent: first with a healthy registry that the client falls back
//! to, then without. A fault under which a client does not fall back ends the same way without, and is not tried twice.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use kit::registry::{Fault, On, RedirectTo, Where};
use kit::runtime::Suite;

use super::cell::Chance;
use super::client::{Client, Kind};
use super::stage::Stage;
use super::table::Seen;
use super::{compare as compare_with_table, side_by_side};

/// Pulls that go on at the same time; most wait.
const LANES: usize = 8;

/// Past every limit of the agent's.
const FOREVER: Duration = Duration::from_mins(10);

/// Past the agent's first reads of the largest layer, and within the others.
const AT: u64 = 1 << 20;

/// What a pull by tag asks of a registry that is well.
const REQUESTS: usize = 7;

/// One fault for one kind of request, for as long as the pull takes.
struct Case {
    name: &'static str,
    on: On,
    fault: Fault,
}

/// Compares the column of one client.
pub async fn compare(kind: Kind, suite: Suite) -> Result<()> {
    let seen = side_by_side(kind, suite, LANES, cases(), async |client, case| both(kind, client, case).await);
    let (with, without): (Vec<_>, Vec<_>) = seen.await?.into_iter().unzip();
    compare_with_table(kind, suite, "faults, with a registry to fall back to", &with)?;
    let without: Vec<_> = without.into_iter().flatten().collect();
    compare_with_table(kind, suite, "faults, without", &without)
}

async fn both(kind: Kind, client: &Client, case: Case) -> Result<(Seen, Option<Seen>)> {
    let with = one(kind, client, &case, true).await?;
    let without =
        if with.cell.went_round_the_agent() { Some(one(kind, client, &case, false).await?) } else { None };
    Ok((with, without))
}

async fn one(kind: Kind, client: &Client, case: &Case, fallback: bool) -> Result<Seen> {
    let stage = Stage::set(kind).await?;
    let agent = stage.agent(None).await?;
    stage.upstream.fault(case.on.clone(), case.fault.clone());
    let pull = stage.pull(client, &stage.route(&agent, fallback), &stage.by_tag()).await;
    let mut seen = stage.cell(case.name, pull, [0, 0]);
    if !fallback {
        seen.cell = seen.cell.without_direct();
    }
    // How often something is tried again depends on what else happens at the same time.
    let tried_once = seen.why.is_none() && stage.marks() == [REQUESTS, 0];
    let layers = case.name.starts_with("blob");
    seen.chance = (!tried_once).then(|| Chance { whole: stage.whole(), layers });
    Ok(seen)
}

fn cases() -> Vec<Case> {
    let manifests = [(On::manifest().head(), of_tags()), (On::manifest().get(), of_manifests())];
    let blobs = [(On::blob().get(), [of_blob_heads(), of_blob_bodies(), of_blob_places()].concat())];
    let cases = manifests.into_iter().chain(blobs).flat_map(|(on, faults)| {
        faults.into_iter().map(move |(name, fault)| Case { name, on: on.clone(), fault })
    });
    cases.collect()
}

type Named = (&'static str, Fault);

fn of_tags() -> Vec<Named> {
    vec![
        ("tag: 404", Fault::status(404)),
        ("tag: 500", Fault::status(500)),
        ("tag: 429, no word when to come again", Fault::too_many(None)),
        ("tag: no answer", Fault::Delay(FOREVER)),
        ("tag: no digest in the header", Fault::Header("docker-content-digest", None)),
    ]
}

fn of_manifests() -> Vec<Named> {
    vec![
        ("manifest: 404", Fault::status(404)),
        ("manifest: 503", Fault::status(503)),
        ("manifest: 429, 60 s", Fault::too_many(Some("60"))),
        ("manifest: no answer", Fault::Delay(FOREVER)),
        ("manifest: ends early", Fault::Cut(100)),
        ("manifest: a wrong byte", Fault::Corrupt(Where::Middle)),
        ("manifest: something else", Fault::Replace(Bytes::from_static(b"<html>log in</html>"))),
        ("manifest: gzip", Fault::Gzip),
    ]
}

fn of_blob_heads() -> Vec<Named> {
    vec![
        ("blob: 401", Fault::status(401)),
        ("blob: 404", Fault::status(404)),
        ("blob: 500", Fault::status(500)),
        ("blob: 429, 60 s", Fault::too_many(Some("60"))),
        ("blob: 429, GHCR", Fault::too_many_ghcr()),
        ("blob: 429, line feeds", Fault::too_many_line_feeds()),
        ("blob: no answer", Fault::Delay(FOREVER)),
        ("blob: an answer after 12 s", Fault::Delay(Duration::from_secs(12))),
        ("blob: closed before an answer", Fault::Close),
        ("blob: reset before an answer", Fault::Reset),
        ("blob: not HTTP", Fault::Raw(Bytes::from_static(b"\x15\x03\x01\x00\x02\x02\x46"))),
    ]
}

fn of_blob_bodies() -> Vec<Named> {
    vec![
        ("blob: silent from the first byte", Fault::Stall(0, FOREVER)),
        ("blob: silent from 1 MiB on", Fault::Stall(AT, FOREVER)),
        ("blob: a pause of 3 s at 1 MiB", Fault::Stall(AT, Duration::from_secs(3))),
        ("blob: 500 kB/s", Fault::Rate(500_000)),
        ("blob: ends before the first byte", Fault::Cut(0)),
        ("blob: ends at 1 MiB", Fault::Cut(AT)),
        ("blob: ends at 1 MiB, ranges ignored", Fault::CutWhole(AT)),
        ("blob: reset at 1 MiB", Fault::CutReset(AT)),
        ("blob: one byte announced too many", Fault::LengthOff(1)),
        ("blob: one byte announced too few", Fault::LengthOff(-1)),
        ("blob: 10 bytes too many", Fault::Extra(10)),
        ("blob: the first byte wrong", Fault::Corrupt(Where::First)),
        ("blob: a byte in the middle wrong", Fault::Corrupt(Where::Middle)),
        ("blob: the last byte wrong", Fault::Corrupt(Where::Last)),
        ("blob: something else", Fault::Replace(Bytes::from_static(b"<html>log in</html>"))),
        ("blob: no length", Fault::Chunked),
        ("blob: gzip", Fault::Gzip),
    ]
}

fn of_blob_places() -> Vec<Named> {
    vec![
        ("blob: 206 to a plain request", Fault::Unasked206),
        ("blob: ranges ignored", Fault::IgnoreRange),
        ("blob: ranges off by one", Fault::WrongOffset(1)),
        ("blob: redirect to another host", Fault::Redirect(307, RedirectTo::OtherHost)),
        ("blob: redirect to another port", Fault::Redirect(302, RedirectTo::OtherPort)),
        ("blob: redirect without a host", Fault::Redirect(308, RedirectTo::Relative)),
        ("blob: three redirects", Fault::Redirect(307, RedirectTo::Chain(3))),
        ("blob: redirects for ever", Fault::Redirect(307, RedirectTo::Loop)),
        ("blob: redirect whose signature expired", Fault::Redirect(307, RedirectTo::Expired)),
    ]
}
