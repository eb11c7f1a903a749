//! s3s-fs: an S3 server in this process, over a directory.

use std::path::PathBuf;

use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

use crate::store::tests::Scratch;

pub(super) const ACCESS_KEY: &str = "AKIDTEST";
pub(super) const SECRET_KEY: &str = "s3cret-of-the-server";
pub(super) const BUCKET: &str = "bucket";

pub(super) struct Server {
    pub(super) port: u16,
    scratch: Scratch,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    pub(super) fn start() -> Server {
        let scratch = Scratch::new();
        std::fs::create_dir(scratch.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(scratch.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Server {
            port,
            scratch,
            runtime: Some(runtime),
        }
    }

    /// The bucket's directory.
    pub(super) fn bucket(&self) -> PathBuf {
        self.scratch.path().join(BUCKET)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
