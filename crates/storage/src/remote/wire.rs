//! Between the client library and the network: what comes back is judged before the library sees it.
//!
//! The library takes any answer with status 200 for a success and any 404 for "not there", and reads an empty
//! listing out of an error document. Proxies, login pages and half-compatible servers send all of these. Here
//! each answer of the store must have the shape that its request calls for; everything else becomes an
//! [`Answer`].

use super::document::{element, is_document, is_error};
use super::fault::{Answer, Broken};
use super::provider::{CONNECT_TIMEOUT, IDLE_TIMEOUT, USER_AGENT};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};
use object_store::{ClientOptions, HeaderMap};
use std::sync::{Arc, OnceLock};

/// The longest page of a listing that is read; Azure's 5000 names of the longest kind fit five times.
const LISTING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How much of an answer is read to find out what went wrong.
const EXPLANATION_BYTES_MAX: usize = 64 * 1024;

/// Makes connections whose answers are judged.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    /// The host of the store; requests to others are for credentials and pass.
    pub host: String,
    pub allow_http: bool,
    pub headers: HeaderMap,
    /// The client for the store, once it is made.
    pub made: Arc<OnceLock<HttpClient>>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        if self.made.get().is_none() {
            let made = self.client().map_err(|error| object_store::Error::Generic {
                store: "HTTP client",
                source: Box::new(error),
            })?;
            drop(self.made.set(HttpClient::new(made)));
        }
        Ok(HttpClient::new(Wire {
            store: self.made.get().expect("it was just made").clone(),
            credentials: OnceLock::new(),
            options: options.clone(),
            host: self.host.clone(),
        }))
    }
}

impl Connector {
    /// The library's client follows redirects, and what stands at the end of one is not the object that was asked for: its
    /// 404 would be taken for ours.
    fn client(&self) -> reqwest::Result<reqwest::Client> {
        reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(USER_AGENT)
            .default_headers(self.headers.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .https_only(!self.allow_http)
            .http1_only()
            // The length of an object is that of its answer.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .build()
    }
}

#[derive(Debug)]
struct Wire {
    store: HttpClient,
    /// The library's own, made when it is needed: making one reads the machine's certificates.
    credentials: OnceLock<HttpClient>,
    options: ClientOptions,
    host: String,
}

/// What a request is for, by which its answer is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Read,
    List,
    /// What a bucket says of its object lock.
    Lock,
    Change,
    Credentials,
}

#[async_trait]
impl HttpService for Wire {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let purpose = self.purpose(&request);
        let client = if purpose == Purpose::Credentials { self.credentials()? } else { &self.store };
        let sent = client.execute(request).await;
        let response = sent.map_err(|error| {
            let kind = error.kind();
            HttpError::new(kind, Broken::new(&error, purpose == Purpose::Credentials))
        })?;
        match purpose {
            Purpose::Credentials => judge_credentials(response),
            _ if !response.status().is_success() => Err(refuse(explained(response).await)),
            Purpose::Read => judge_read(response).await,
            Purpose::List => judge_listing(response).await,
            Purpose::Lock => judge_lock(response).await,
            Purpose::Change => judge_change(response).await,
        }
    }
}

impl Wire {
    fn credentials(&self) -> Result<&HttpClient, HttpError> {
        if self.credentials.get().is_none() {
            let made = ReqwestConnector::default().connect(&self.options);
            let made =
                made.map_err(|error| HttpError::new(HttpErrorKind::Unknown, Broken::new(&error, true)))?;
            drop(self.credentials.set(made));
        }
        Ok(self.credentials.get().expect("it was just made"))
    }

    fn purpose(&self, request: &HttpRequest) -> Purpose {
        let host = request.uri().host().unwrap_or_default();
        let bucket_in_host = host.strip_suffix(&self.host).is_some_and(|bucket| bucket.ends_with('.'));
        let query = request.uri().query().unwrap_or_default();
        if host != self.host && !bucket_in_host {
            Purpose::Credentials
        } else if request.method().as_str() != "GET" {
            Purpose::Change
        } else if query.split('&').any(|pair| pair == "list-type=2" || pair == "comp=list") {
            Purpose::List
        } else if query == "object-lock" {
            Purpose::Lock
        } else {
            Purpose::Read
        }
    }
}

/// The library knows these services; only that they may be busy for a moment is lost on it.
fn judge_credentials(response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let status = response.status();
    if status.is_server_error() || status.as_u16() == 429 {
        return Err(HttpError::new(HttpErrorKind::Request, Broken::status(status.as_u16())));
    }
    Ok(response)
}

/// We read by range only, so an answer without one is not from the store.
async fn judge_read(response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let status = response.status().as_u16();
    let headers = response.headers();
    let nothing_left = match status {
        206 => header(headers, "content-range").and_then(size_beyond_which),
        // Some servers answer a range of an empty object so.
        200 if header(headers, "content-length") == Some("0") && headers.contains_key("etag") => Some(0),
        _ => None,
    };
    if let Some(size) = nothing_left {
        return Err(refuse(Answer { status: 416, size: Some(size), ..Answer::default() }));
    }
    if status == 206 {
        return Ok(response);
    }
    let strange = Some("a page instead of the object's range");
    let length = header(headers, "content-length").and_then(|length| length.parse().ok());
    let text = match length {
        Some(0..=EXPLANATION_BYTES_MAX) => collect(response.into_body(), EXPLANATION_BYTES_MAX).await?,
        _ => Bytes::new(),
    };
    Err(refuse(Answer { strange, ..Answer::read(status, None, &String::from_utf8_lossy(&text)) }))
}

/// The object's size out of `bytes 100-99/100`, as azurite answers a range that begins at the end, instead of
/// by 416.
fn size_beyond_which(content_range: &str) -> Option<u64> {
    let (range, size) = content_range.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, last): (i128, i128) = (start.parse().ok()?, last.parse().ok()?);
    if last < start { size.parse().ok() } else { None }
}

/// A listing must be a whole listing: the library reads any other document as an empty one.
async fn judge_listing(response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (parts, body) = response.into_parts();
    let bytes = collect(body, LISTING_BYTES_MAX).await?;
    let status = parts.status.as_u16();
    let text = String::from_utf8_lossy(&bytes);
    let strange = if is_error(&text) {
        "an error with status 200"
    } else if !["ListBucketResult", "EnumerationResults"].iter().any(|root| is_document(&text, root)) {
        "a page instead of a listing"
    } else if text.contains("<IsTruncated>true</IsTruncated>")
        && element(&text, "NextContinuationToken").is_none()
    {
        "a part of a listing without the way to the rest"
    } else {
        return Ok(HttpResponse::from_parts(parts, bytes.into()));
    };
    Err(refuse(Answer { strange: Some(strange), ..Answer::read(status, None, &text) }))
}

/// A server that does not know object lock answers with a listing, a page or nothing.
async fn judge_lock(response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (parts, body) = response.into_parts();
    let bytes = collect(body, EXPLANATION_BYTES_MAX).await?;
    let text = String::from_utf8_lossy(&bytes);
    if is_document(&text, "ObjectLockConfiguration") {
        return Ok(HttpResponse::from_parts(parts, bytes.into()));
    }
    let strange = Some("something else than the bucket's object lock");
    Err(refuse(Answer { strange, ..Answer::read(parts.status.as_u16(), None, &text) }))
}

/// A write or delete that succeeded says nothing: any words are an error's, a page's or another program's. Only deletes of
/// many at once tell what became of each.
async fn judge_change(response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (parts, body) = response.into_parts();
    let bytes = collect(body, EXPLANATION_BYTES_MAX).await?;
    let text = String::from_utf8_lossy(&bytes);
    let kind = header(&parts.headers, "content-type").unwrap_or_default();
    if let Some(refused) = refused_in_batch(kind, &text) {
        return Err(refuse(refused));
    }
    let many = kind.starts_with("multipart/mixed") || is_document(&text, "DeleteResult");
    let strange = if crate::planted::has("answer.unjudged") {
        return Ok(HttpResponse::from_parts(parts, bytes.into()));
    } else if is_error(&text) {
        "an error with status 200"
    } else if !many && !text.trim().is_empty() {
        "words instead of a confirmation"
    } else {
        return Ok(HttpResponse::from_parts(parts, bytes.into()));
    };
    Err(refuse(Answer { strange: Some(strange), ..Answer::read(parts.status.as_u16(), None, &text) }))
}

/// Azure deletes in batches, here of one: the answer holds the real one.
fn refused_in_batch(content_type: &str, text: &str) -> Option<Answer> {
    if !content_type.starts_with("multipart/mixed") {
        return None;
    }
    let (_, inner) = text.split_once("HTTP/1.1 ")?;
    let status = inner.get(..3)?.parse().ok().filter(|status| *status >= 300)?;
    let code = inner.lines().find_map(|line| line.strip_prefix("x-ms-error-code:")).map(str::trim);
    Some(Answer::read(status, code, inner))
}

/// What an answer without success says about the reason.
async fn explained(response: HttpResponse) -> Answer {
    let (parts, body) = response.into_parts();
    let text = collect(body, EXPLANATION_BYTES_MAX).await.unwrap_or_default();
    let code = header(&parts.headers, "x-ms-error-code");
    let size =
        header(&parts.headers, "content-range").and_then(|range| range.rsplit_once('/')?.1.parse().ok());
    Answer { size, ..Answer::read(parts.status.as_u16(), code, &String::from_utf8_lossy(&text)) }
}

/// The text of an answer that was judged, which is a short one.
pub(super) async fn text_of(body: HttpResponseBody) -> Result<String, HttpError> {
    let bytes = collect(body, EXPLANATION_BYTES_MAX).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn collect(body: HttpResponseBody, most: usize) -> Result<Bytes, HttpError> {
    let mut stream = body.bytes_stream();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| HttpError::new(error.kind(), Broken::new(&error, false)))?;
        if bytes.len() + chunk.len() > most {
            return Err(refuse(Answer { strange: Some("an endless answer"), ..Answer::default() }));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

fn refuse(answer: Answer) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, answer)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_inside_a_batch_counts() {
        let text = "--batch\r\nContent-ID: 0\r\n\r\nHTTP/1.1 404 gone\r\nx-ms-error-code: BlobNotFound\r\n\r\n--batch--";
        let answer = refused_in_batch("multipart/mixed; boundary=batch", text).unwrap();
        assert_eq!((answer.status, answer.code.as_deref()), (404, Some("BlobNotFound")));
        assert_eq!(refused_in_batch("multipart/mixed", &text.replace("404", "202")), None);
        assert_eq!(refused_in_batch("text/html", text), None);
        assert_eq!(refused_in_batch("multipart/mixed", "HTTP/1.1 4"), None);
    }

    #[test]
    fn a_range_that_ends_before_it_begins_is_beyond_the_object() {
        assert_eq!(size_beyond_which("bytes 0--1/0"), Some(0));
        assert_eq!(size_beyond_which("bytes 100-99/100"), Some(100));
        for other in ["bytes 0-0/1", "bytes 5-9/*", "bytes */100", "bytes -", "0-0/1", "bytes é-/1"] {
            assert_eq!(size_beyond_which(other), None, "{other}");
        }
    }
}
