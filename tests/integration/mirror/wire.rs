//! The mirror on the wire: how connections begin and end.

use std::time::Duration;

use kit::{
    agent::blob_path,
    registry::random_bytes,
    wire::{Ending, Exchange, exchange, get},
};

use super::{REPOSITORY, start};

const LIMIT: Duration = Duration::from_secs(6);

#[tokio::test]
async fn a_tls_hello_on_the_plain_port_is_answered_in_http() {
    let (_upstream, agent) = start().await;
    // The first bytes of a TLS 1.3 ClientHello: containerd falls back to HTTP only if the reply starts with `HTTP/`.
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let mut exchange = Exchange::open(agent.mirror(), hello, LIMIT).await.expect("connected");
    let head = exchange.head().await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert_eq!(exchange.ending().await, Ending::Fin);
}

#[tokio::test]
async fn an_upload_is_refused_without_a_reset_however_large() {
    let (_upstream, agent) = start().await;
    let body = "x".repeat(300_000);
    let request = format!(
        "POST /v2/team/app/blobs/uploads/?ns=registry.test HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut exchange = Exchange::open(agent.mirror(), request.as_bytes(), LIMIT).await.expect("connected");
    let answer = exchange.answer(false).await;
    assert_eq!(answer.status(), 405);
    assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    assert_ne!(exchange.ending().await, Ending::Reset);
}

#[tokio::test]
async fn a_connection_is_kept_for_further_requests_also_pipelined_ones() {
    let (upstream, agent) = start().await;
    let digest = upstream.random_blob(REPOSITORY, 1, 100_000).await;
    let request = get(&blob_path(REPOSITORY, &digest), "");
    let both = [request.as_bytes(), request.as_bytes()].concat();
    let mut exchange = Exchange::open(agent.mirror(), &both, LIMIT).await.expect("connected");
    for _ in 0..2 {
        assert!(exchange.answer(false).await.body == random_bytes(1, 100_000));
    }
    exchange.send(get("/v2/", "").as_bytes()).await.expect("still open");
    assert_eq!(exchange.answer(false).await.status(), 200);
}

#[tokio::test]
async fn http_1_0_gets_an_answer_and_the_end_of_the_connection() {
    let (upstream, agent) = start().await;
    let digest = upstream.random_blob(REPOSITORY, 2, 1000).await;
    let request = format!("GET {} HTTP/1.0\r\n\r\n", blob_path(REPOSITORY, &digest));
    let mut exchange = Exchange::open(agent.mirror(), request.as_bytes(), LIMIT).await.expect("connected");
    assert!(exchange.answer(false).await.body == random_bytes(2, 1000));
    assert_eq!(exchange.ending().await, Ending::Fin);
}

#[tokio::test]
async fn a_client_that_has_sent_its_fin_still_gets_its_answer() {
    let (upstream, agent) = start().await;
    let digest = upstream.random_blob(REPOSITORY, 3, 500_000).await;
    let mut stream = std::net::TcpStream::connect(agent.mirror()).expect("connected");
    let request = get(&blob_path(REPOSITORY, &digest), "");
    let read = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        stream.write_all(request.as_bytes()).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("half closed");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read to the end");
        all
    });
    let all = tokio::time::timeout(LIMIT, read).await.expect("in time").expect("no panic");
    assert!(all.ends_with(&random_bytes(3, 500_000)), "{} bytes", all.len());
}

#[tokio::test]
async fn nothing_is_content_encoded_whatever_the_client_accepts() {
    let (upstream, agent) = start().await;
    let digest = upstream.random_blob(REPOSITORY, 4, 100_000).await;
    for range in ["", "range: bytes=10-\r\n"] {
        let headers = format!("accept-encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5\r\n{range}");
        let request = get(&blob_path(REPOSITORY, &digest), &headers);
        let answer = exchange(agent.mirror(), &request, LIMIT).await.expect("an answer");
        assert_eq!(answer.header("content-encoding"), None);
        assert!(answer.header("content-length").is_some());
    }
    let log = upstream.log();
    assert!(
        log.iter().all(|entry| entry.header("accept-encoding").is_none_or(|value| value == "identity")),
        "forwarded upstream"
    );
}

#[tokio::test]
async fn rubbish_does_not_disturb_the_others() {
    let (_upstream, agent) = start().await;
    for rubbish in [
        &b"\r\n\r\n"[..],
        b"GET",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        &vec![b'a'; 100_000],
    ] {
        if let Ok(mut exchange) = Exchange::open(agent.mirror(), rubbish, Duration::from_millis(300)).await {
            exchange.ending().await;
        }
        assert_eq!(agent.get("/v2/").await.status(), 200);
    }
}
