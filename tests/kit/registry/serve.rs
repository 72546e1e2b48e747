//! Connections: hyper reads every request and writes honest answers. A broken answer is written by hand: its handler
//! hands a [`RawPlan`] to the connection's task, which takes the socket back from hyper and ends it as planned.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

use super::{
    Origin, Server,
    delivery::{Declared, Delivery, End, Flow, Reply},
    fault::{Fault, RedirectTo},
    log::Entry,
    path,
    pull::{self, Ranging, presign},
    push,
};

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// How long an ended connection may take to be read by its client before it is dropped.
const LINGER: Duration = Duration::from_secs(5);
/// So that bytes before a reset are read before the reset overtakes them.
const BEFORE_RESET: Duration = Duration::from_millis(50);

/// An answer that hyper would not write.
struct RawPlan {
    head: Bytes,
    flow: Option<Flow>,
    end: End,
}

/// Serves one connection to its end.
pub(super) async fn connection(server: Arc<Server>, stream: TcpStream, origin: Origin) {
    let number = server.connections.fetch_add(1, Ordering::Relaxed);
    let (raw, mut plans) = mpsc::channel(1);
    let service = service_fn(move |request| -> Answer {
        let (server, raw) = (Arc::clone(&server), raw.clone());
        Box::pin(async move { Ok(respond(server, request, origin, number, raw).await) })
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let plan = tokio::select! {
        // The end of an orderly connection, or of a client that left: neither is news.
        _ = std::future::poll_fn(|context| connection.poll_without_shutdown(context)) => None,
        plan = plans.recv() => plan,
    };
    let mut stream = connection.into_parts().io.into_inner();
    let Some(plan) = plan else {
        let _ = stream.shutdown().await;
        return;
    };
    // The client may leave at any time: nothing to report.
    let _ = write_raw(stream, plan).await;
}

async fn write_raw(mut stream: TcpStream, mut plan: RawPlan) -> io::Result<()> {
    stream.write_all(&plan.head).await?;
    while let Some(piece) = match &mut plan.flow {
        Some(flow) => flow.next().await,
        None => None,
    } {
        stream.write_all(&piece?).await?;
    }
    if plan.end == End::Reset {
        tokio::time::sleep(BEFORE_RESET).await;
        stream.set_zero_linger()?;
        return Ok(());
    }
    stream.shutdown().await?;
    // Closing with unread bytes would turn the FIN into a RST.
    let _ = tokio::time::timeout(LINGER, async {
        while stream.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
    })
    .await;
    Ok(())
}

async fn respond(
    server: Arc<Server>,
    request: Request<Incoming>,
    origin: Origin,
    connection: u64,
    raw: mpsc::Sender<RawPlan>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let target = path::parse(parts.uri.path());
    let entry = server.log.push(Entry::new(parts.method, parts.uri, target, parts.headers, connection));
    let fault = server.rules.pick(&entry);
    let (reply, mut delivery) = match prepare(&server, &entry, origin, body, fault).await {
        Ok(prepared) => prepared,
        Err(plan) => return hand_over(&raw, plan).await,
    };
    delivery.rate = delivery.rate.or_else(|| server.rate(entry.target.kind));
    let status = reply.status;
    entry.set_status(status.as_u16());
    let head = headers(&reply, &delivery, entry.method == Method::HEAD);
    if delivery.needs_raw() {
        let flow = (entry.method != Method::HEAD).then(|| Flow::new(reply.content, delivery.clone(), entry));
        let plan = RawPlan { head: raw_head(status, &head), flow, end: delivery.end };
        return hand_over(&raw, plan).await;
    }
    let empty = entry.method == Method::HEAD || reply.content.len() == 0;
    let mut response = Response::new(if empty {
        entry.set_finished();
        http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
    } else {
        let flow = Flow::new(reply.content, delivery, entry);
        let frames = stream::unfold(flow, |mut flow| async move {
            let piece = flow.next().await?;
            Some((piece.map(Frame::data), flow))
        });
        BodyExt::boxed_unsync(StreamBody::new(frames))
    });
    *response.status_mut() = status;
    *response.headers_mut() = head;
    response
}

/// Gives the plan to the connection's task, which drops this future.
async fn hand_over(raw: &mpsc::Sender<RawPlan>, plan: RawPlan) -> Response<Body> {
    let _ = raw.send(plan).await;
    std::future::pending().await
}

/// The answer and its delivery, or what to write instead of an answer.
async fn prepare(
    server: &Server,
    entry: &Entry,
    origin: Origin,
    body: Incoming,
    fault: Option<Fault>,
) -> Result<(Reply, Delivery), RawPlan> {
    let silent = |end| RawPlan { head: Bytes::new(), flow: None, end };
    let mut ranging = Ranging::Honour;
    match &fault {
        Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
        Some(Fault::Close) => return Err(silent(End::Fin)),
        Some(Fault::Reset) => return Err(silent(End::Reset)),
        Some(Fault::Raw(bytes)) => return Err(RawPlan { head: bytes.clone(), flow: None, end: End::Fin }),
        Some(Fault::ExpireTokens) => server.gate.expire_tokens(),
        Some(Fault::IgnoreRange | Fault::CutWhole(_)) => ranging = Ranging::Ignore,
        Some(Fault::WrongOffset(by)) => ranging = Ranging::Shift(*by),
        Some(Fault::Unasked206) => ranging = Ranging::Always,
        _ => {}
    }
    let reply = if let Some(Fault::Status(status, headers, body)) = &fault {
        let status = StatusCode::from_u16(*status).expect("tests ask for valid status codes");
        headers
            .iter()
            .fold(Reply::new(status), |reply, (name, value)| reply.header(*name, value))
            .bytes(body.clone())
    } else {
        honest(server, entry, origin, body, ranging).await
    };
    Ok(fault.map_or_else(
        || (reply.clone(), Delivery::default()),
        |fault| blemish(server, entry, reply.clone(), fault),
    ))
}

async fn honest(server: &Server, entry: &Entry, origin: Origin, body: Incoming, ranging: Ranging) -> Reply {
    if let Err(refusal) =
        server.gate.check(entry, &server.base(Origin::Main), &server.base(Origin::OtherHost))
    {
        return *refusal;
    }
    if entry.target.kind == path::Kind::Token {
        let form = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        return server.gate.issue(entry, &String::from_utf8_lossy(&form));
    }
    if !matches!(entry.method, Method::GET | Method::HEAD) {
        return push::answer(server, entry, body).await;
    }
    let reply = pull::answer(server, entry, origin, ranging);
    if entry.target.kind == path::Kind::Manifest {
        return server.throttle.apply(entry.method == Method::GET, reply);
    }
    reply
}

/// Applies a fault that concerns the answer itself.
fn blemish(server: &Server, entry: &Entry, mut reply: Reply, fault: Fault) -> (Reply, Delivery) {
    let mut delivery = Delivery::default();
    match fault {
        Fault::Stall(after, time) => delivery.stall = Some((after, time)),
        Fault::Cut(after) | Fault::CutWhole(after) => delivery.cut = Some(after),
        Fault::CutReset(after) => (delivery.cut, delivery.end) = (Some(after), End::Reset),
        Fault::LengthOff(by) => delivery.declared = Declared::Off(by),
        Fault::Extra(count) => delivery.extra = count,
        Fault::Corrupt(at) => delivery.corrupt = Some(at.offset(reply.content.len())),
        Fault::Replace(bytes) => reply = reply.bytes(bytes),
        Fault::Rate(rate) => delivery.rate = Some(rate),
        Fault::Chunked => delivery.declared = Declared::Absent,
        Fault::Gzip => (delivery.gzip, delivery.declared) = (true, Declared::Absent),
        Fault::Header(name, Some(value)) => reply = reply.header(name, &value),
        Fault::Header(name, None) => drop(reply.headers.remove(name)),
        Fault::Redirect(status, to) if reply.status.is_success() => {
            reply = redirect(server, entry, &reply, status, to);
        }
        // The rest concern the request and were dealt with before there was an answer.
        _ => {}
    }
    (reply, delivery)
}

fn redirect(server: &Server, entry: &Entry, reply: &Reply, status: u16, to: RedirectTo) -> Reply {
    let digest =
        reply.headers.get("docker-content-digest").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let sign = |hops, valid| presign(&entry.method, hops, valid, server, digest);
    let valid = Some(Duration::from_mins(1));
    let location = match to {
        RedirectTo::OtherHost => format!("{}{}", server.base(Origin::OtherHost), sign(0, valid)),
        RedirectTo::OtherPort => format!("{}{}", server.base(Origin::OtherPort), sign(0, valid)),
        RedirectTo::Relative => sign(0, valid),
        RedirectTo::Chain(hops) => format!("{}{}", server.base(Origin::OtherHost), sign(hops, valid)),
        RedirectTo::Loop => entry.uri.to_string(),
        RedirectTo::Expired => format!("{}{}", server.base(Origin::OtherHost), sign(0, None)),
    };
    let status = StatusCode::from_u16(status).expect("tests ask for valid status codes");
    Reply::new(status).header(header::LOCATION, &location)
}

fn headers(reply: &Reply, delivery: &Delivery, head: bool) -> HeaderMap {
    let mut headers = reply.headers.clone();
    if delivery.gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    let length = match delivery.declared {
        Declared::Exact => Some(reply.content.len()),
        Declared::Off(by) => Some(reply.content.len().saturating_add_signed(by)),
        Declared::Absent => None,
    };
    let bodiless = reply.status == StatusCode::NOT_MODIFIED || reply.status == StatusCode::NO_CONTENT;
    if let Some(length) = length.filter(|_| !bodiless) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    } else if head {
        // hyper would otherwise claim a length of its own.
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    headers
}

fn raw_head(status: StatusCode, headers: &HeaderMap) -> Bytes {
    let mut head =
        format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or("Unknown"));
    for (name, value) in headers {
        for part in [name.as_str(), ": ", value.to_str().unwrap_or_default(), "\r\n"] {
            head.push_str(part);
        }
    }
    head.push_str("connection: close\r\n\r\n");
    Bytes::from(head)
}
