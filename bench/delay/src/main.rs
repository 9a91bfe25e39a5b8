//! A proxy before an S3 server on loopback that makes it as far away as a real one: each request waits before it goes on.
//!
//! It speaks HTTP/1.1 on one port and, for clients that insist, HTTPS on another; it counts requests by kind and answers
//! `GET /counts` and `GET /reset` on a third. One thread for each connection, one connection to the server for each client's.
#![allow(clippy::print_stderr)] // it is a program for a benchmark

mod counts;
mod http;

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use counts::Counts;
use http::Client;

const USAGE: &str = "usage: delay SERVER_PORT HTTP_PORT HTTPS_PORT CONTROL_PORT DELAY_MS CERTIFICATE KEY";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("delay: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [server, http, https, control, delay, certificate, key] =
        <[String; 7]>::try_from(words).map_err(|_| USAGE)?;
    let port = |text: String| text.parse::<u16>().map_err(|error| format!("{text}: {error}"));
    let server = port(server)?;
    let delay = Duration::from_millis(u64::from(port(delay)?));
    let tls = Arc::new(tls(&certificate.into(), &key.into())?);
    let counts = Arc::new(Counts::default());
    let open = |port: u16| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| format!("port {port}: {error}"))
    };
    let (plain, sealed, control) = (open(port(http)?)?, open(port(https)?)?, open(port(control)?)?);

    let (of_plain, of_sealed) = (Arc::clone(&counts), Arc::clone(&counts));
    let plain = thread::spawn(move || {
        accept(&plain, move |client| Client::new(client).serve(server, delay, &of_plain));
    });
    thread::spawn(move || {
        accept(&sealed, move |client| {
            let connection = ServerConnection::new(Arc::clone(&tls)).map_err(io::Error::other)?;
            Client::new(StreamOwned::new(connection, client)).serve(server, delay, &of_sealed)
        });
    });
    thread::spawn(move || accept(&control, move |client| answer(client, &counts)));
    plain.join().map_err(|_| "a thread panicked".to_owned())
}

fn tls(certificate: &PathBuf, key: &PathBuf) -> Result<ServerConfig, String> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| format!("{}: {error}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| error.to_string())
}

/// Serves each connection on a thread of its own. A connection that breaks is its client's to notice.
fn accept(listener: &TcpListener, serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) {
    let serve = Arc::new(serve);
    for client in listener.incoming().flatten() {
        let serve = Arc::clone(&serve);
        thread::spawn(move || {
            let _ = client.set_nodelay(true);
            let _ = serve(client);
        });
    }
}

fn answer(client: TcpStream, counts: &Counts) -> io::Result<()> {
    let mut client = io::BufReader::new(client);
    let head = http::read_head(&mut client)?.unwrap_or_default();
    if head.starts_with(b"GET /reset ") {
        counts.reset();
    }
    let body = counts.json();
    write!(
        client.get_mut(),
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
