//! A wire between a client and a server that can be cut.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use server::throwaway::Throwaway;

/// Once cut, it takes everything and brings nothing.
pub struct Wire {
    pub cut: Arc<AtomicBool>,
    folder: tempfile::TempDir,
}

impl Wire {
    pub fn to(server: &Throwaway) -> Self {
        let folder = tempfile::Builder::new().prefix("wire-").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let socket = format!(".s.PGSQL.{}", server.port());
        let listener = UnixListener::bind(folder.path().join(&socket)).unwrap();
        std::fs::set_permissions(folder.path().join(&socket), std::fs::Permissions::from_mode(0o777))
            .unwrap();
        let (cut, behind) = (Arc::new(AtomicBool::new(false)), server.socket_directory().join(&socket));
        let told = cut.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = UnixStream::connect(&behind) else { continue };
                for (from, to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server.try_clone().unwrap(), client.try_clone().unwrap()),
                ] {
                    let cut = told.clone();
                    std::thread::spawn(move || carry(from, to, &cut));
                }
            }
        });
        Self { cut, folder }
    }

    pub fn conninfo(&self, server: &Throwaway) -> String {
        format!("host={} port={} dbname=postgres user=postgres", self.folder.path().display(), server.port())
    }
}

fn carry(mut from: UnixStream, mut to: UnixStream, cut: &AtomicBool) {
    let mut buffer = [0; 1 << 16];
    loop {
        match from.read(&mut buffer) {
            // What is on a cut wire is lost, and so is the news of its end.
            Ok(_) if cut.load(Ordering::Relaxed) => std::thread::sleep(Duration::from_millis(10)),
            Ok(0) | Err(_) => break,
            Ok(read) => {
                if to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
        }
    }
    let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
}
