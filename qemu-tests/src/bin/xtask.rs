//! `cargo xtask`: set-up, QEMU harness and tests.

fn main() -> std::process::ExitCode {
    portcullis_qemu_tests::cli::main()
}
