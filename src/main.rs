//! pgark's program: the library's command line and its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgark::cli::main()
}
