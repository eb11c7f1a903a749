//! A host of its own for pgark, as a network namespace, and the wire between it and this machine, which can be
//! cut: nothing arrives then, and nobody is told.
//!
//! Needs root, as the tests of full disks do. Invariant: the namespace, and with it the wire, goes with this; that of a
//! test that was killed bears the number of its process, and hinders nobody.

use super::gate::Gate;
use super::run;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct Wire {
    /// The name of the namespace.
    pub(crate) namespace: String,
    /// Our end.
    device: String,
    /// This machine, as it is seen from there.
    pub(crate) address: String,
}

impl Wire {
    pub(crate) fn new() -> Wire {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        // A network of four addresses for each: processes of one run are near each other in number.
        let [high, low] = [process / 64 % 256, process % 64 * 4];
        let (address, theirs) = (
            format!("10.{}.{high}.{}", 231 + number, low + 1),
            format!("10.{}.{high}.{}", 231 + number, low + 2),
        );
        let wire = Wire {
            namespace: format!("pgark-{process}-{number}"),
            device: format!("pga{process}x{number}"),
            address,
        };
        let (namespace, device) = (&wire.namespace, &wire.device);
        for line in [
            format!("netns add {namespace}"),
            format!("link add {device} type veth peer name eth0 netns {namespace}"),
            format!("addr add {}/30 dev {device}", wire.address),
            format!("link set {device} up"),
            format!("-n {namespace} addr add {theirs}/30 dev eth0"),
            format!("-n {namespace} link set eth0 up"),
            format!("-n {namespace} link set lo up"),
        ] {
            ip(&line).assert_code(0);
        }
        wire
    }

    /// A way from there to a port of this machine's loopback.
    pub(crate) fn way_to(&self, port: u16) -> Gate {
        Gate::at(&self.address, port)
    }

    pub(crate) fn cut(&self) {
        ip(&format!("link set {} down", self.device)).assert_code(0);
    }

    pub(crate) fn mend(&self) {
        ip(&format!("link set {} up", self.device)).assert_code(0);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.namespace));
    }
}

fn ip(line: &str) -> super::Run {
    run(Command::new("ip").args(line.split(' ')))
}
