//! Inputs in object stores: a real S3 server, a network that cuts, and what is not there.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Output,
    sync::{Arc, Mutex},
};

use kit::{
    registry::sha256,
    runtime::{S3, missing},
};

use kit::build_fixture::{Fixture, finish, report, skipped};

/// In front of a server: notes the heads of requests and cuts one answer short.
struct Cutter {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Cutter {
    /// Cuts the first answer to a `GET` after so many bytes. Ends with the test's process.
    fn start(server: SocketAddr, after: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let address = listener.local_addr().expect("it is bound");
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || pass(client, server, after, &seen));
            }
        });
        Self { address, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("nobody panics with it").clone()
    }
}

/// One request and its answer; the server closes the connection after it.
fn pass(mut client: TcpStream, server: SocketAddr, after: u64, seen: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match client.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let first = {
        let mut seen = seen.lock().expect("nobody panics with it");
        seen.push(head.clone());
        seen.iter().filter(|head| head.starts_with("GET")).count() == 1 && head.starts_with("GET")
    };
    let mut upstream = TcpStream::connect(server).expect("the server runs");
    // One exchange is all that this connection is for.
    let asked = format!("{}\r\nConnection: close\r\n\r\n", head.trim_end());
    upstream.write_all(asked.as_bytes()).expect("it takes requests");
    let limit = if first { after } else { u64::MAX };
    // A client that has gone away is its own business.
    let _ = std::io::copy(&mut upstream.take(limit), &mut client);
}

/// Runs `hearth build` with a store behind `endpoint`.
async fn build(fixture: &Fixture, endpoint: SocketAddr, more: &[&str]) -> Output {
    let mut command = fixture.command(&["--output", "json"]);
    command.args(more);
    command.envs([
        ("AWS_ENDPOINT", format!("http://{endpoint}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
    ]);
    tokio::task::spawn_blocking(move || finish(&mut command)).await.expect("it does not panic")
}

/// Takes Spark from `url` instead of a file.
fn spark_from(fixture: &Fixture, url: &str, sha256: &str) {
    fixture.spec("registry.test/data/spark", "{ rootfs: base.tar }", "");
    let text = fs::read_to_string(fixture.path("hearth.yaml")).expect("readable");
    let from = "{ path: \"pyspark-{spark}.tar.gz\" }";
    assert!(text.contains(from));
    let text = text.replace(from, &format!("{{ url: \"{url}\", sha256: \"{sha256}\" }}"));
    fs::write(fixture.path("hearth.yaml"), text).expect("writable");
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_come_from_s3_and_are_resumed_and_checked_like_all_downloads() {
    if !missing(&["moto_server"]).is_empty() {
        skipped("moto_server is not installed");
        return;
    }
    let fixture = Fixture::new();
    let expected = fixture.build(&["--cache-dir", "local"]);
    let archive = fs::read(fixture.path("pyspark-3.5.9.tar.gz")).expect("readable");
    let digest = sha256(&archive);
    let hex = digest.strip_prefix("sha256:").expect("a digest");
    let store = S3::start().await.expect("it starts");
    store.put("inputs", "spark/pyspark-3.5.9.tar.gz", archive).await.expect("it takes objects");

    spark_from(&fixture, "s3://inputs/spark/pyspark-{spark}.tar.gz", hex);
    let cutter = Cutter::start(store.address(), 2_000_000);
    let output = build(&fixture, cutter.address, &[]).await;
    assert_eq!(report(&output)["images"], expected["images"]);
    let gets: Vec<String> = cutter.heads().into_iter().filter(|head| head.starts_with("GET")).collect();
    assert_eq!(gets.len(), 2, "{gets:#?}");
    assert!(!gets[0].to_lowercase().contains("\r\nrange:"), "{}", gets[0]);
    assert!(gets[1].to_lowercase().contains("\r\nrange: bytes="), "goes on where it was: {}", gets[1]);

    // What is in the cache needs no store.
    let asked = cutter.heads().len();
    assert_eq!(report(&build(&fixture, cutter.address, &["--offline"]).await)["images"], expected["images"]);
    assert_eq!(cutter.heads().len(), asked);

    spark_from(&fixture, "s3://inputs/spark/pyspark-{spark}.tar.gz", &"1".repeat(64));
    let output = build(&fixture, store.address(), &[]).await;
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("s3://inputs/") && message.contains("instead of `sha256:1111"), "{message}");

    spark_from(&fixture, "s3://inputs/nothing.tar.gz", hex);
    let before = cutter.heads().len();
    let output = build(&fixture, cutter.address, &["--cache-dir", "fresh"]).await;
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("`s3://inputs/nothing.tar.gz`") && message.contains("not found"), "{message}");
    assert_eq!(cutter.heads().len(), before + 1, "what is not there is not asked for again");
}

#[test]
fn a_scheme_that_nobody_reads_is_refused_before_anything_is_read() {
    let fixture = Fixture::new();
    spark_from(&fixture, "ftp://files.test/pyspark.tar.gz", &"0".repeat(64));
    let (code, message) = fixture.failure(&[]);
    assert!(code == 2 && message.contains("`sources.spark.url`") && message.contains("`hdfs`"), "{message}");
}
