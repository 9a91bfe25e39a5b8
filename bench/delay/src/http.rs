//! As much of HTTP/1.1 as a proxy needs: where a head ends, and how long a body is.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::counts::Counts;

const BUFFER: usize = 256 << 10;
const HEAD_LIMIT: usize = 64 << 10;

/// How a body ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// One connection of a client.
pub struct Client<S> {
    stream: BufReader<S>,
    buffer: Vec<u8>,
}

impl<S: Read + Write> Client<S> {
    /// A connection that was just accepted.
    pub fn new(stream: S) -> Self {
        Self { stream: BufReader::with_capacity(BUFFER, stream), buffer: vec![0; BUFFER] }
    }

    /// Passes requests and answers on, in turn, until one side closes.
    pub fn serve(mut self, server: u16, delay: Duration, counts: &Counts) -> io::Result<()> {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server))?;
        server.set_nodelay(true)?;
        let mut server = BufReader::with_capacity(BUFFER, server);
        while let Some(head) = read_head(&mut self.stream)? {
            let text = String::from_utf8_lossy(&head).into_owned();
            let mut words = text.split_ascii_whitespace();
            let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            counts.count(method, target);
            thread::sleep(delay);
            let body = body_of(&text, Body::None);
            // A server may answer before it has read the body, and close: its answer is still to be passed on.
            let passed = server.get_mut().write_all(&head);
            let passed = passed.and_then(|()| {
                pass(&mut self.stream, server.get_mut(), body, &mut self.buffer, &counts.sent)
            });
            let Some(answer) = read_head(&mut server)? else { return passed };
            let text = String::from_utf8_lossy(&answer).into_owned();
            let status = text.split_ascii_whitespace().nth(1).unwrap_or("");
            let body = match status {
                _ if method == "HEAD" => Body::None,
                "204" | "304" => Body::None,
                _ => body_of(&text, Body::UntilClose),
            };
            self.stream.get_mut().write_all(&answer)?;
            pass(&mut server, self.stream.get_mut(), body, &mut self.buffer, &counts.received)?;
            self.stream.get_mut().flush()?;
            if body == Body::UntilClose || passed.is_err() {
                return passed;
            }
        }
        Ok(())
    }
}

/// The head of a message with the empty line that ends it; `None` when the other side closed.
pub fn read_head(stream: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    loop {
        let before = head.len();
        stream.read_until(b'\n', &mut head)?;
        match &head[before..] {
            [] => return Ok(None),
            b"\r\n" | b"\n" => return Ok(Some(head)),
            _ if head.len() > HEAD_LIMIT => return Err(io::Error::other("the head is too long")),
            _ => {}
        }
    }
}

fn body_of(head: &str, otherwise: Body) -> Body {
    for line in head.lines().skip(1) {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("transfer-encoding") && value.to_ascii_lowercase().contains("chunked") {
            return Body::Chunked;
        }
        if name.eq_ignore_ascii_case("content-length") {
            return value.trim().parse().map_or(otherwise, Body::Length);
        }
    }
    otherwise
}

fn pass(
    from: &mut impl BufRead,
    to: &mut impl Write,
    body: Body,
    buffer: &mut [u8],
    count: &AtomicU64,
) -> io::Result<()> {
    match body {
        Body::None => Ok(()),
        Body::Length(length) => pass_bytes(from, to, length, buffer, count),
        Body::UntilClose => pass_bytes(from, to, u64::MAX, buffer, count).or(Ok(())),
        Body::Chunked => loop {
            let mut line = Vec::new();
            from.read_until(b'\n', &mut line)?;
            to.write_all(&line)?;
            let text = String::from_utf8_lossy(&line);
            let digits = text.trim().split(';').next().unwrap_or("");
            let length = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
            if length > 0 {
                pass_bytes(from, to, length + 2, buffer, count)?;
            } else if let Some(trailers) = read_head(from)? {
                return to.write_all(&trailers);
            }
        },
    }
}

fn pass_bytes(
    from: &mut impl Read,
    to: &mut impl Write,
    length: u64,
    buffer: &mut [u8],
    count: &AtomicU64,
) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = from.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all(&buffer[..read])?;
        count.fetch_add(read as u64, Ordering::Relaxed);
        left -= read as u64;
    }
    Ok(())
}
