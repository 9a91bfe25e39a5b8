//! One bucket that speaks as much of the XML protocol of S3 and Google Cloud Storage as we use, and its
//! variations.

use super::http::{Reply, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

pub type Objects = BTreeMap<String, Vec<u8>>;
/// Mode and end of each.
pub type Locks = BTreeMap<String, (String, String)>;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    S3,
    Gcs,
}

/// What the server does otherwise than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quirk {
    None,
    /// `If-None-Match` is not looked at.
    IgnoresConditions,
    /// `If-None-Match` is answered by 501.
    KnowsNoConditions,
    /// The upload's framing stays in the object.
    StoresFraming,
    /// A success without ETag.
    NoEtag,
    /// A success with an ETag that is no digest, as with server-side encryption.
    OddEtag,
    /// An empty object's range is answered by 200 instead of 416.
    EmptyIsWhole,
}

#[derive(Clone, Debug)]
pub struct Bucket {
    pub objects: Arc<Mutex<Objects>>,
    /// Objects' locks; none where the bucket has no object lock.
    pub locks: Option<Arc<Mutex<Locks>>>,
    pub dialect: Dialect,
    quirk: Quirk,
}

impl Bucket {
    pub fn new(dialect: Dialect, quirk: Quirk) -> Bucket {
        Bucket { objects: Arc::default(), locks: None, dialect, quirk }
    }

    /// The same with object lock.
    pub fn lockable(self) -> Bucket {
        Bucket { locks: Some(Arc::default()), ..self }
    }

    /// Mode and end of an object's lock.
    pub fn lock(&self, key: &str) -> Option<(String, String)> {
        self.locks.as_ref()?.lock().unwrap().get(key).cloned()
    }

    /// The same objects, served with another quirk.
    pub fn with(&self, quirk: Quirk) -> Bucket {
        Bucket { quirk, ..self.clone() }
    }

    pub fn answer(&self, request: &Request) -> Reply {
        let Some(key) = request.path.strip_prefix("/bucket") else { return error(404, "NoSuchBucket") };
        let key = key.trim_start_matches('/').to_owned();
        let mut objects = self.objects.lock().unwrap();
        match request.method.as_str() {
            "GET" if request.query.get("list-type").is_some_and(|kind| kind == "2") => {
                list(&objects, request)
            }
            "GET" if request.query.contains_key("object-lock") => self.lock_configuration(),
            "GET" => match self.lock(&key) {
                Some((mode, until)) => self
                    .get(objects.get(&key), request)
                    .header("x-amz-object-lock-mode", mode)
                    .header("x-amz-object-lock-retain-until-date", until),
                None => self.get(objects.get(&key), request),
            },
            "PUT" if request.query.contains_key("retention") => {
                if !objects.contains_key(&key) {
                    return error(404, "NoSuchKey");
                }
                let text = String::from_utf8_lossy(&request.body).into_owned();
                self.set_lock(&key, inside(&text, "Mode"), inside(&text, "RetainUntilDate"))
            }
            "PUT" => self.put(&mut objects, key, request),
            "DELETE" => match (objects.remove(&key), self.dialect) {
                (None, Dialect::Gcs) => error(404, "NoSuchKey"),
                _ => Reply::new(204, ""),
            },
            _ => error(405, "MethodNotAllowed"),
        }
    }

    fn get(&self, object: Option<&Vec<u8>>, request: &Request) -> Reply {
        let Some(object) = object else { return error(404, "NoSuchKey") };
        let size = object.len();
        let range = &request.headers["range"]["bytes=".len()..];
        let (start, end) = match range.split_once('-').unwrap() {
            ("", suffix) => (size.saturating_sub(suffix.parse().unwrap()), size),
            (start, end) => (start.parse().unwrap(), size.min(end.parse::<usize>().unwrap() + 1)),
        };
        if size == 0 && self.quirk == Quirk::EmptyIsWhole {
            return stamped(Reply::new(200, ""), "\"e\"");
        }
        if start >= size {
            return error(416, "InvalidRange").header("Content-Range", format!("bytes */{size}"));
        }
        let reply = Reply::new(206, &object[start..end]);
        stamped(reply, "\"e\"").header("Content-Range", format!("bytes {start}-{}/{size}", end - 1))
    }

    fn lock_configuration(&self) -> Reply {
        match &self.locks {
            None => error(404, "ObjectLockConfigurationNotFoundError"),
            Some(_) => Reply::new(
                200,
                "<ObjectLockConfiguration xmlns=\"x\"><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>",
            ),
        }
    }

    /// As S3 does it: neither a shorter lock nor a milder mode.
    fn set_lock(&self, key: &str, mode: String, until: String) -> Reply {
        let Some(locks) = &self.locks else { return error(400, "InvalidRequest") };
        let mut locks = locks.lock().unwrap();
        if let Some((old, end)) = locks.get(key)
            && (*end > until || (old == "COMPLIANCE" && mode != *old))
        {
            return error(403, "AccessDenied");
        }
        locks.insert(key.to_owned(), (mode, until));
        Reply::new(200, "")
    }

    fn put(&self, objects: &mut Objects, key: String, request: &Request) -> Reply {
        let condition = match self.dialect {
            Dialect::S3 => request.headers.get("if-none-match").is_some_and(|value| value == "*"),
            Dialect::Gcs => {
                request.headers.get("x-goog-if-generation-match").is_some_and(|value| value == "0")
            }
        };
        match self.quirk {
            Quirk::IgnoresConditions => {}
            Quirk::KnowsNoConditions if condition => return error(501, "NotImplemented"),
            _ if condition && objects.contains_key(&key) => return error(412, "PreconditionFailed"),
            _ => {}
        }
        let mut body = request.body.clone();
        if self.quirk == Quirk::StoresFraming {
            body = [
                format!("{:x}\r\n", body.len()).as_bytes(),
                &body,
                b"\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
            ]
            .concat();
        }
        if let Some(mode) = request.headers.get("x-amz-object-lock-mode") {
            // It is refused by S3 without a digest of the content.
            if !request.headers.contains_key("x-amz-checksum-sha256") || self.locks.is_none() {
                return error(400, "InvalidRequest");
            }
            let until = request.headers["x-amz-object-lock-retain-until-date"].clone();
            self.set_lock(&key, mode.clone(), until);
        }
        objects.insert(key, body);
        match self.quirk {
            Quirk::NoEtag => Reply::new(200, ""),
            Quirk::OddEtag => stamped(Reply::new(200, ""), "W/not-a-digest-7"),
            _ => stamped(Reply::new(200, ""), "\"e\""),
        }
    }
}

fn inside(text: &str, element: &str) -> String {
    let (_, rest) = text.split_once(&format!("<{element}>")).unwrap();
    rest.split_once(&format!("</{element}>")).unwrap().0.to_owned()
}

fn stamped(reply: Reply, etag: &str) -> Reply {
    // Without a generation the library takes Google's success for a failure.
    let reply = reply.header("ETag", etag).header("x-goog-generation", 1);
    reply.header("Last-Modified", "Sun, 22 Nov 2026 10:00:00 GMT")
}

pub fn error(status: u16, code: &str) -> Reply {
    let text = format!(
        "<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>told by the test</Message></Error>"
    );
    Reply::new(status, text).header("Content-Type", "application/xml")
}

fn list(objects: &Objects, request: &Request) -> Reply {
    let asked = |name: &str| request.query.get(name).cloned().unwrap_or_default();
    let (prefix, after, delimiter) = (asked("prefix"), asked("continuation-token"), asked("delimiter"));
    let most = asked("max-keys").parse().unwrap_or(1000).min(1000);
    let mut rows = BTreeSet::new();
    let mut text = String::new();
    let mut last = None;
    for (key, object) in
        objects.range(after.clone()..).filter(|(key, _)| key.starts_with(&prefix) && **key > after)
    {
        let rest = &key[prefix.len()..];
        let group = rest
            .split_once('/')
            .filter(|_| !delimiter.is_empty())
            .map(|(group, _)| format!("{prefix}{group}/"));
        let row = group.clone().unwrap_or_else(|| key.clone());
        if rows.len() == most && !rows.contains(&row) {
            break;
        }
        last = Some(key.clone());
        if !rows.insert(row) {
            continue;
        }
        text += &match group {
            Some(group) => format!("<CommonPrefixes><Prefix>{group}</Prefix></CommonPrefixes>"),
            None => format!(
                "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>2026-11-22T10:00:00.000Z</LastModified>\
                 <ETag>\"e\"</ETag></Contents>",
                object.len()
            ),
        };
    }
    let more = last.as_ref().is_some_and(|last| {
        objects.range(last.clone()..).any(|(key, _)| key > last && key.starts_with(&prefix))
    });
    let token =
        last.filter(|_| more).map(|last| format!("<NextContinuationToken>{last}</NextContinuationToken>"));
    Reply::new(
        200,
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><Name>bucket</Name>\
             <IsTruncated>{more}</IsTruncated>{text}{}</ListBucketResult>",
            token.unwrap_or_default()
        ),
    )
}
