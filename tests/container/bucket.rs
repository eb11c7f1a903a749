//! The manual's bucket on a Garage of this machine, where containers reach it.

use std::cell::RefCell;
use std::net::{TcpListener, TcpStream};

use super::stack::{Stack, docker};
use crate::support::garage::{ACCESS_KEY, Garage, SECRET_KEY};

pub(super) const LIST: &str = "aws s3 ls s3://agentic-platform-backups/backups/";

pub(super) struct Bucket {
    _garage: Garage,
    newest: RefCell<String>,
}

impl Bucket {
    /// Starts the server; the stack's network is there. `s3.env` has what
    /// `aws` needs.
    pub(super) fn start(stack: &Stack) -> Bucket {
        // The manual's region.
        let garage = Garage::start_in("us-east-1");
        garage.admin(&["key", "allow", "--create-bucket", ACCESS_KEY]);
        let gateway = "{{(index .IPAM.Config 0).Gateway}}";
        let gateway = docker(["network", "inspect", "--format", gateway, "agentic-network"]);
        // Garage listens on loopback only.
        let door = TcpListener::bind((gateway.stdout.trim(), 0)).unwrap();
        let endpoint = format!("http://{}", door.local_addr().unwrap());
        let port = garage.port;
        std::thread::spawn(move || forward(&door, port));
        let settings = format!(
            "S3_ENDPOINT={endpoint}\nS3_FORCE_PATH_STYLE=true\nAWS_REGION=us-east-1\nAWS_ACCESS_KEY_ID={ACCESS_KEY}\nAWS_SECRET_ACCESS_KEY={SECRET_KEY}\nBACKUP_S3_BUCKET=agentic-platform-backups\n"
        );
        let script =
            format!("echo '{settings}' >s3.settings; sed '/./s/^/export /' s3.settings >s3.env");
        stack.sh(&script).assert_code(0);
        Bucket {
            _garage: garage,
            newest: RefCell::default(),
        }
    }

    /// From now on the stack is composed with the bucket.
    pub(super) fn export(stack: &Stack) {
        stack.sh("cat s3.settings >>.env").assert_code(0);
    }

    /// A script that lays the old manual's example into the bucket, as the old service did.
    pub(super) fn put_example() -> String {
        let to = "s3://agentic-platform-backups/backups/";
        format!(
            "for file in backups/{name}.sql.gz*; do aws s3 cp $file {to}; done",
            name = super::EXAMPLE
        )
    }

    /// Remembers the newest backup that a run stored there, too.
    pub(super) fn holds(&self, stack: &Stack) {
        *self.newest.borrow_mut() = stack.backups(".sql.gz").pop().unwrap();
    }

    pub(super) fn newest(&self) -> String {
        self.newest.borrow().clone()
    }
}

/// Passes connections on, until the process ends.
fn forward(door: &TcpListener, port: u16) {
    for client in door.incoming().flatten() {
        let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
            continue;
        };
        let pairs = [
            (client.try_clone().unwrap(), server.try_clone().unwrap()),
            (server, client),
        ];
        for (mut source, mut sink) in pairs {
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut source, &mut sink);
                let _ = sink.shutdown(std::net::Shutdown::Write);
            });
        }
    }
}
