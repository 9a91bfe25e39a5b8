//! The contract and the probe on servers that others wrote.
//!
//! `PGKEEP_TEST_S3_ENDPOINT` (moto: `moto_server`) and `PGKEEP_TEST_AZURE_ENDPOINT` (azurite, with
//! `--skipApiVersionCheck`) say where they are, as `http://127.0.0.1:5000`. Without them the tests fail,
//! unless `PGKEEP_TEST_SKIP_REMOTE=1` says that this is wanted.
#![allow(clippy::unwrap_used)] // Helpers of tests, outside of test functions.

mod support;

use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential};
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::{ClientOptions, HeaderValue};
use storage::{AzureSettings, Location, Settings, Storage, StorageError, contract, open, probe};
use support::{bytes, hasty, http, name, s3_settings};

/// The account and key that azurite documents for everybody.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

fn endpoint(variable: &str) -> Option<String> {
    let skip = std::env::var("PGKEEP_TEST_SKIP_REMOTE").is_ok_and(|skip| skip == "1");
    match std::env::var(variable) {
        Ok(endpoint) => Some(endpoint.trim_end_matches('/').to_owned()),
        Err(_) if skip => None,
        Err(_) => panic!("{variable} is not set; set PGKEEP_TEST_SKIP_REMOTE=1 to do without this server"),
    }
}

async fn s3(bucket: &str) -> Option<Settings> {
    let endpoint = endpoint("PGKEEP_TEST_S3_ENDPOINT")?;
    let made = http::send(&endpoint, "PUT", &format!("/{bucket}")).await;
    assert!(matches!(made, 200 | 409), "make the bucket: {made}");
    let mut settings = s3_settings(&endpoint);
    settings.s3.region = Some("us-east-1".to_owned());
    Some(settings)
}

#[tokio::test]
async fn s3_contract() {
    let Some(settings) = s3("pgkeep-contract").await else { return };
    for location in ["s3://pgkeep-contract", "s3://pgkeep-contract/some/prefix"] {
        let location = Location::parse(location).unwrap();
        contract::check(&*open(&location, &settings).unwrap()).await;
        let small_pages = Settings { list_page_size: Some(2), ..settings.clone() };
        contract::check(&*open(&location, &small_pages).unwrap()).await;
    }
}

#[tokio::test]
async fn s3_probe() {
    let Some(settings) = s3("pgkeep-probe").await else { return };
    let storage = open(&Location::parse("s3://pgkeep-probe/here").unwrap(), &settings).unwrap();
    let found = probe::probe(&*storage).await.unwrap();
    assert!(found.is_complete(), "{found:?}");
    assert_eq!(storage.list("").await.unwrap(), []);
}

#[tokio::test]
async fn s3_missing_bucket_is_told() {
    let Some(settings) = s3("pgkeep-there").await else { return };
    let storage = open(&Location::parse("s3://pgkeep-not-there").unwrap(), &settings).unwrap();
    for failure in [
        storage.size(&name("a")).await.unwrap_err(),
        storage.create(&name("a"), &bytes("x")).await.unwrap_err(),
        storage.delete(&name("a")).await.unwrap_err(),
        storage.list("").await.unwrap_err(),
    ] {
        assert!(matches!(failure, StorageError::RootMissing { .. }), "{failure:?}");
    }
}

/// Settings for azurite, with the container made.
async fn azure(container: &str) -> Option<Settings> {
    let given = endpoint("PGKEEP_TEST_AZURE_ENDPOINT")?;
    let endpoint = format!("{}/{ACCOUNT}", given.trim_end_matches(&format!("/{ACCOUNT}")));
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.method_mut() = "PUT".parse().unwrap();
    *request.uri_mut() = format!("{endpoint}/{container}?restype=container").parse().unwrap();
    request.headers_mut().insert("content-length", HeaderValue::from_static("0"));
    let credential = AzureCredential::AccessKey(AzureAccessKey::try_new(KEY).unwrap());
    AzureAuthorizer::new(&credential, ACCOUNT).try_authorize(&mut request).unwrap();
    let client = ReqwestConnector::default().connect(&ClientOptions::new().with_allow_http(true)).unwrap();
    let made = client.execute(request).await.unwrap().status().as_u16();
    assert!(matches!(made, 201 | 409), "make the container: {made}");
    let azure = AzureSettings {
        account: Some(ACCOUNT.to_owned()),
        endpoint: Some(endpoint),
        access_key: Some(KEY.to_owned().into()),
        ..AzureSettings::default()
    };
    Some(Settings { azure, ..Settings::default() })
}

#[tokio::test]
async fn azure_contract() {
    let Some(settings) = azure("pgkeep-contract").await else { return };
    for page in [None, Some(2)] {
        let settings = Settings { list_page_size: page, ..settings.clone() };
        let location = Location::parse("az://pgkeep-contract/some/prefix").unwrap();
        contract::check(&*open(&location, &settings).unwrap()).await;
    }
}

#[tokio::test]
async fn azure_probe() {
    let Some(settings) = azure("pgkeep-probe").await else { return };
    let storage = open(&Location::parse("az://pgkeep-probe").unwrap(), &settings).unwrap();
    let found = probe::probe(&*storage).await.unwrap();
    assert!(found.is_complete(), "{found:?}");
}

#[tokio::test]
async fn azure_says_what_is_wrong_without_the_key() {
    let Some(settings) = azure("pgkeep-probe").await else { return };
    let mut wrong = Settings { retry: hasty(), ..settings.clone() };
    let key = KEY.replacen("Eby8", "Abcd", 1);
    wrong.azure.access_key = Some(key.clone().into());
    let storage = open(&Location::parse("az://pgkeep-probe").unwrap(), &wrong).unwrap();
    let failure = storage.size(&name("a")).await.unwrap_err();
    assert!(matches!(failure, StorageError::Refused { .. }), "{failure:?}");
    assert!(!format!("{failure:?}").contains(&key[..20]), "{failure:?}");
    let storage = open(&Location::parse("az://pgkeep-not-there").unwrap(), &settings).unwrap();
    let failure = storage.size(&name("a")).await.unwrap_err();
    assert!(matches!(failure, StorageError::RootMissing { .. }), "{failure:?}");
}
