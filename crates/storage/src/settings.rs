//! What a remote storage needs to know beyond its location. Only `cli` reads the environment and fills this
//! in.

use crate::lock::LockRule;
use crate::retry::RetryPolicy;
use secrecy::SecretString;
use std::collections::BTreeMap;

/// Settings of every kind of storage; the defaults suit a directory and Amazon S3 on one of its own machines.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Amazon S3 and kin.
    pub s3: S3Settings,
    /// Google Cloud Storage.
    pub gcs: GcsSettings,
    /// Azure Blob Storage.
    pub azure: AzureSettings,
    /// How long a call goes on trying.
    pub retry: RetryPolicy,
    /// Whether the storage honours create-only writes (`If-None-Match: *` and kin), as
    /// [`probe`](crate::probe::probe) found out. Without them a name is looked at before it is written, which
    /// is safe for one writer at a time only.
    pub conditional_put: bool,
    /// Allows `http://` to an endpoint on another machine.
    pub allow_http: bool,
    /// Objects in one page of a listing; the storage's own maximum (1000, Azure 5000) if not given.
    pub list_page_size: Option<u16>,
    /// How objects are locked when they are created; S3 and kin only.
    pub lock: Option<LockRule>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            s3: S3Settings::default(),
            gcs: GcsSettings::default(),
            azure: AzureSettings::default(),
            retry: RetryPolicy::default(),
            conditional_put: true,
            allow_http: false,
            list_page_size: None,
            lock: None,
        }
    }
}

/// Settings of Amazon S3 and everything that speaks its protocol.
#[derive(Clone, Debug, Default)]
pub struct S3Settings {
    /// The service's address without the bucket, `https://fly.storage.tigris.dev`; Amazon's own if not given.
    pub endpoint: Option<String>,
    /// The region; if not given `auto` for an endpoint, else `us-east-1`.
    pub region: Option<String>,
    /// Where the bucket's name goes.
    pub addressing: Addressing,
    /// The access key. Without it: web identity, container or machine credentials.
    pub access_key_id: Option<String>,
    /// The secret of the access key.
    pub secret_access_key: Option<SecretString>,
    /// The session token of temporary credentials.
    pub session_token: Option<SecretString>,
    /// Variables by which a platform hands out credentials, under their usual names (`AWS_ROLE_ARN`,
    /// `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_CONTAINER_CREDENTIALS_FULL_URI`…); others are ignored.
    pub platform: BTreeMap<String, String>,
}

/// Where the name of a bucket goes in an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// Into the path for an endpoint of one's own; into the host name for Amazon and Tigris.
    #[default]
    Auto,
    /// `https://host/bucket/key`
    Path,
    /// `https://bucket.host/key`
    VirtualHosted,
}

/// Settings of Google Cloud Storage.
#[derive(Clone, Debug, Default)]
pub struct GcsSettings {
    /// Another address than Google's, for an emulator.
    pub endpoint: Option<String>,
    /// A file with a service account's key (`GOOGLE_SERVICE_ACCOUNT`).
    pub service_account_path: Option<String>,
    /// The service account's key itself, as JSON.
    pub service_account_key: Option<SecretString>,
    /// A file with application default credentials (`GOOGLE_APPLICATION_CREDENTIALS`).
    pub application_credentials: Option<String>,
    /// A bearer token obtained elsewhere.
    pub bearer_token: Option<SecretString>,
    /// Asks nobody for credentials, for an emulator.
    pub anonymous: bool,
}

/// Settings of Azure Blob Storage.
#[derive(Clone, Debug, Default)]
pub struct AzureSettings {
    /// The storage account.
    pub account: Option<String>,
    /// Another address than `https://ACCOUNT.blob.core.windows.net`; for an emulator it includes the account.
    pub endpoint: Option<String>,
    /// The account's key, in base64.
    pub access_key: Option<SecretString>,
    /// A shared access signature, `sv=…&sig=…`.
    pub sas_token: Option<SecretString>,
    /// The application of a service principal or workload identity.
    pub client_id: Option<String>,
    /// The secret of the service principal.
    pub client_secret: Option<SecretString>,
    /// The tenant of the service principal.
    pub tenant_id: Option<String>,
    /// The token file of a workload identity.
    pub federated_token_file: Option<String>,
}
