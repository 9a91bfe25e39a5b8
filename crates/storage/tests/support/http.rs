//! A small HTTP/1.1 server that can misbehave below HTTP: cut bodies short, reset connections, say nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: BTreeMap<String, String>,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub ending: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Whole,
    /// The head promises the whole body, half of it comes, and the connection is closed.
    HalfBody,
    /// As `HalfBody`, and the connection is reset.
    HalfBodyReset,
    /// The connection is reset instead of an answer.
    Reset,
    /// Nothing ever comes.
    Silence,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, headers: Vec::new(), body: body.into(), ending: Ending::Whole }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn ending(mut self, ending: Ending) -> Reply {
        self.ending = ending;
        self
    }
}

/// Serves until the runtime ends; returns `http://127.0.0.1:port`.
pub async fn serve(handler: impl Fn(Request) -> Reply + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let handler = Arc::new(handler);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let handler = handler.clone();
            tokio::spawn(async move { converse(stream, &*handler).await });
        }
    });
    format!("http://{address}")
}

async fn converse(mut stream: TcpStream, handler: &(impl Fn(Request) -> Reply + Send + Sync)) -> Option<()> {
    // Head and body are two writes; without this each answer waits for a delayed acknowledgement.
    stream.set_nodelay(true).ok()?;
    loop {
        let request = receive(&mut stream).await?;
        let reply = handler(request);
        match reply.ending {
            Ending::Silence => std::future::pending().await,
            // Closing with unsent zero linger makes a reset out of the close.
            Ending::Reset => return stream.set_zero_linger().ok(),
            Ending::Whole | Ending::HalfBody | Ending::HalfBodyReset => {}
        }
        let has_length = reply.headers.iter().any(|(name, _)| name == "Content-Length");
        let mut head = format!("HTTP/1.1 {} Reason\r\n", reply.status);
        if !has_length && reply.status != 204 {
            head += &format!("Content-Length: {}\r\n", reply.body.len());
        }
        reply.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        stream.write_all((head + "\r\n").as_bytes()).await.ok()?;
        if reply.ending != Ending::Whole {
            stream.write_all(&reply.body[..reply.body.len() / 2]).await.ok()?;
            return match reply.ending {
                Ending::HalfBodyReset => stream.set_zero_linger().ok(),
                _ => stream.shutdown().await.ok(),
            };
        }
        stream.write_all(&reply.body).await.ok()?;
    }
}

async fn receive(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let mut body = bytes.split_off(end + 4);
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?);
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter(|pair| !pair.is_empty());
    let query = query.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = query.map(|(name, value)| (name.to_owned(), unescaped(value))).collect();
    Some(Request { method, path: unescaped(path), query, headers, body })
}

fn unescaped(text: &str) -> String {
    let mut pieces = text.split('%');
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |done, piece| {
        let byte = u8::from_str_radix(&piece[..2], 16).unwrap();
        format!("{done}{}{}", byte as char, &piece[2..])
    })
}

/// Sends one request as it is and returns the status.
pub async fn send(endpoint: &str, method: &str, path: &str) -> u16 {
    send_with(endpoint, method, path, "", "").await
}

/// The same with further lines of its head, and a body.
pub async fn send_with(endpoint: &str, method: &str, path: &str, lines: &str, body: &str) -> u16 {
    let host = endpoint.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(host).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n{lines}Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap().parse().unwrap()
}
