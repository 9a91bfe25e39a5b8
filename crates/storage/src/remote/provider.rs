//! The client library's three providers, set up from our settings.

use super::signed::Signed;
use super::wire::Connector;
use crate::open::OpenError;
use crate::settings::{Addressing, AzureSettings, GcsSettings, S3Settings, Settings};
use crate::{Bucket, Location};
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::HttpConnector as _;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::list::PaginatedListStore;
use object_store::{BackoffConfig, ClientOptions, HeaderMap, HeaderValue, ObjectStore, RetryConfig};
use secrecy::{ExposeSecret, SecretString};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use url::{Host, Url};

/// How long making a connection may take, with name resolution and TLS.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle connections are dropped before servers do it, some after 20 s.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) const USER_AGENT: &str = concat!("pgkeep/", env!("CARGO_PKG_VERSION"));

/// Variables of the platform that S3 credentials come by.
const S3_PLATFORM: [&str; 9] = [
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
    "AWS_IMDSV1_FALLBACK",
];

/// The faces of one client.
#[derive(Clone)]
pub(super) struct Client {
    pub objects: Arc<dyn ObjectStore>,
    pub pages: Arc<dyn PaginatedListStore>,
    /// For what the library has no words for; S3 and kin only.
    pub signed: Option<Signed>,
}

/// A provider with checked settings, from which a client can be built.
#[derive(Clone, Debug)]
pub(super) struct Provider {
    settings: Settings,
    kind: Kind,
    bucket: Bucket,
    endpoint: Url,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    S3,
    Gcs,
    Azure,
}

impl Provider {
    /// Checks what can be checked without asking anyone.
    pub fn new(location: &Location, settings: &Settings) -> Result<Provider, OpenError> {
        let (kind, bucket, endpoint) = match location {
            Location::Directory(_) => return Err(setting("a directory is not a bucket")),
            Location::S3(bucket) => (Kind::S3, bucket, s3_endpoint(&settings.s3)?),
            Location::Gcs(bucket) => (Kind::Gcs, bucket, gcs_endpoint(&settings.gcs)?),
            Location::Azure(bucket) => (Kind::Azure, bucket, azure_endpoint(&settings.azure)?),
        };
        check_transport(&endpoint, settings.allow_http)?;
        Ok(Provider { settings: settings.clone(), kind, bucket: bucket.clone(), endpoint })
    }

    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Builds the client: reads the machine's certificates, asks nobody.
    pub fn build(&self) -> object_store::Result<Client> {
        match self.kind {
            Kind::S3 => self.s3(),
            Kind::Gcs => self.gcs(),
            Kind::Azure => self.azure(),
        }
    }

    fn s3(&self) -> object_store::Result<Client> {
        let settings = &self.settings.s3;
        let virtual_hosted = self.is_virtual_hosted();
        let connector = self.connector();
        let mut builder = AmazonS3Builder::new()
            .with_http_connector(connector.clone())
            .with_client_options(self.client_options())
            .with_retry(no_retry())
            .with_bucket_name(&self.bucket.name)
            .with_region(region(settings))
            .with_endpoint(self.s3_address(virtual_hosted))
            .with_virtual_hosted_style_request(virtual_hosted)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_disable_bulk_delete(true);
        for (variable, value) in &settings.platform {
            if S3_PLATFORM.contains(&variable.as_str()) {
                builder = builder.with_config(variable.to_ascii_lowercase().parse()?, value);
            }
        }
        if let Some(key) = &settings.access_key_id {
            builder = builder.with_access_key_id(key);
        }
        if let Some(secret) = &settings.secret_access_key {
            builder = builder.with_secret_access_key(secret.expose_secret());
        }
        if let Some(token) = &settings.session_token {
            builder = builder.with_token(token.expose_secret());
        }
        let store = builder.build()?;
        let address = self.s3_address(virtual_hosted);
        let signed = Signed {
            http: connector.connect(&self.client_options())?,
            credentials: store.credentials().clone(),
            region: region(settings),
            bucket: if virtual_hosted { address } else { format!("{address}/{}", self.bucket.name) },
        };
        Ok(Client { signed: Some(signed), ..Client::new(store) })
    }

    fn gcs(&self) -> object_store::Result<Client> {
        let settings = &self.settings.gcs;
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_http_connector(self.connector())
            .with_client_options(self.client_options())
            .with_retry(no_retry())
            .with_bucket_name(&self.bucket.name);
        if settings.anonymous {
            // The library's own way to skip signing forgets deletes, and asks the machine for credentials
            // then.
            builder = builder.with_bearer_token("anonymous");
        }
        if settings.endpoint.is_some() {
            builder = builder.with_base_url(self.endpoint.as_str().trim_end_matches('/'));
        }
        if let Some(path) = &settings.service_account_path {
            builder = builder.with_service_account_path(path);
        }
        if let Some(key) = &settings.service_account_key {
            builder = builder.with_service_account_key(key.expose_secret());
        }
        if let Some(path) = &settings.application_credentials {
            builder = builder.with_application_credentials(path);
        }
        if let Some(token) = &settings.bearer_token {
            builder = builder.with_bearer_token(token.expose_secret());
        }
        builder.build().map(Client::new)
    }

    fn azure(&self) -> object_store::Result<Client> {
        let settings = &self.settings.azure;
        let mut builder = MicrosoftAzureBuilder::new()
            .with_http_connector(self.connector())
            .with_client_options(self.client_options())
            .with_retry(no_retry())
            .with_container_name(&self.bucket.name)
            .with_account(settings.account.clone().unwrap_or_default())
            .with_endpoint(self.endpoint.as_str().trim_end_matches('/').to_owned());
        let secret =
            |secret: &Option<SecretString>| secret.as_ref().map(|secret| secret.expose_secret().to_owned());
        let values = [
            (AzureConfigKey::AccessKey, secret(&settings.access_key)),
            (AzureConfigKey::SasKey, secret(&settings.sas_token)),
            (AzureConfigKey::ClientId, settings.client_id.clone()),
            (AzureConfigKey::ClientSecret, secret(&settings.client_secret)),
            (AzureConfigKey::AuthorityId, settings.tenant_id.clone()),
            (AzureConfigKey::FederatedTokenFile, settings.federated_token_file.clone()),
        ];
        for (key, value) in values {
            if let Some(value) = value {
                builder = builder.with_config(key, value);
            }
        }
        builder.build().map(Client::new)
    }

    fn connector(&self) -> Connector {
        Connector {
            host: self.endpoint.host_str().unwrap_or_default().to_owned(),
            allow_http: self.endpoint.scheme() == "http",
            headers: self.own_headers(),
            made: Arc::default(),
        }
    }

    /// The library's own time limits are off: one for a whole request would cut off a slow upload.
    /// [`Retry`](crate::Retry) bounds each try by its bytes.
    fn client_options(&self) -> ClientOptions {
        ClientOptions::new()
            .with_timeout_disabled()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_pool_idle_timeout(IDLE_TIMEOUT)
            .with_allow_http(self.endpoint.scheme() == "http")
            .with_user_agent(HeaderValue::from_static(USER_AGENT))
            .with_default_headers(self.own_headers())
    }

    fn own_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.is_tigris() {
            // Without it a region away from the leader answers from its own copy, and conditions are judged
            // by that.
            headers.insert("x-tigris-consistent", HeaderValue::from_static("true"));
        }
        headers
    }

    fn host_ends_with(&self, suffix: &str) -> bool {
        self.endpoint.domain().is_some_and(|host| host.ends_with(suffix))
    }

    fn is_tigris(&self) -> bool {
        self.host_ends_with(".tigris.dev")
            || self.host_ends_with(".tigrisfiles.io")
            || self.host_ends_with(".storage.dev")
    }

    fn is_virtual_hosted(&self) -> bool {
        match self.settings.s3.addressing {
            Addressing::Path => false,
            Addressing::VirtualHosted => true,
            // A certificate for *.host does not cover a bucket whose name has a dot.
            Addressing::Auto if self.bucket.name.contains('.') => false,
            Addressing::Auto => self.is_tigris() || self.host_ends_with(".amazonaws.com"),
        }
    }

    fn s3_address(&self, virtual_hosted: bool) -> String {
        let address = self.endpoint.as_str().trim_end_matches('/');
        if !virtual_hosted {
            return address.to_owned();
        }
        address.replacen("://", &format!("://{}.", self.bucket.name), 1)
    }
}

impl Client {
    fn new(store: impl ObjectStore + PaginatedListStore) -> Client {
        let store = Arc::new(store);
        Client { objects: store.clone(), pages: store, signed: None }
    }
}

fn s3_endpoint(settings: &S3Settings) -> Result<Url, OpenError> {
    if settings.access_key_id.is_some() != settings.secret_access_key.is_some() {
        return Err(setting("an S3 access key needs both the key's id and its secret"));
    }
    match &settings.endpoint {
        Some(endpoint) => endpoint_url(endpoint),
        None => {
            let region = region(settings);
            let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
            endpoint_url(&format!("https://s3.{region}.{domain}"))
        }
    }
}

fn region(settings: &S3Settings) -> String {
    let usual = if settings.endpoint.is_some() { "auto" } else { "us-east-1" };
    settings.region.clone().filter(|region| !region.is_empty()).unwrap_or_else(|| usual.to_owned())
}

fn gcs_endpoint(settings: &GcsSettings) -> Result<Url, OpenError> {
    endpoint_url(settings.endpoint.as_deref().unwrap_or("https://storage.googleapis.com"))
}

fn azure_endpoint(settings: &AzureSettings) -> Result<Url, OpenError> {
    let account =
        settings.account.as_deref().ok_or_else(|| setting("Azure needs the name of the storage account"))?;
    let usual = format!("https://{account}.blob.core.windows.net");
    endpoint_url(settings.endpoint.as_deref().unwrap_or(&usual))
}

/// Reads an endpoint, without repeating it: it may hold a password by mistake.
fn endpoint_url(text: &str) -> Result<Url, OpenError> {
    let url = Url::parse(text).map_err(|_| setting("the endpoint is not an address like https://host"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(setting("the endpoint is not an address like https://host"));
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(setting(
            "an endpoint holds no user, password or query; credentials are settings of their own",
        ));
    }
    Ok(url)
}

fn check_transport(endpoint: &Url, allow_http: bool) -> Result<(), OpenError> {
    let loopback = match endpoint.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    if endpoint.scheme() == "https" || loopback || allow_http {
        return Ok(());
    }
    Err(setting("the endpoint is http:// on another machine, which must be allowed on purpose"))
}

/// Repeating is [`Retry`](crate::Retry)'s business, which knows the deadline of the whole call.
fn no_retry() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO }
}

fn setting(text: &str) -> OpenError {
    OpenError::Setting(text.to_owned())
}
