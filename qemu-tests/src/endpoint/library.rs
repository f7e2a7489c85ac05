//! Building the library with the machine's C compiler.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use crate::process::Group;
use crate::workspace::Workspace;

const SOURCES: [&str; 2] = ["server.c", "endpoint.c"];
const HEADERS: [&str; 2] = ["endpoint.h", "qemu.h"];
const FLAGS: [&str; 8] =
    ["-std=gnu11", "-O2", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Wstrict-prototypes"];
/// Only a compiler that hangs takes this long.
const LIMIT: Duration = Duration::from_secs(120);

/// The library, built unless one of the same sources is there.
///
/// # Errors
///
/// There is no compiler, or it does not compile the sources; its words are in the error.
pub fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    static LOCK: Mutex<()> = Mutex::new(());
    let _guard = LOCK.lock();
    let compiler = env::var_os("CC").unwrap_or_else(|| OsString::from("gcc"));
    let folder = workspace.harness_file("preload");
    let place = workspace.target().join("preload");
    fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
    let library = place.join(format!("endpoint-{}.so", key(&folder, &compiler)?));
    if library.exists() {
        return Ok(library);
    }
    // Written beside its place and moved there, so that what is there is whole.
    let fresh = place.join(format!("endpoint.so.{}", std::process::id()));
    compile(&folder, &compiler, &fresh, &place.join("gcc.log"))?;
    fs::rename(&fresh, &library)?;
    Ok(library)
}

/// Tells builds apart: sources, flags and the compiler's name.
fn key(folder: &Path, compiler: &OsString) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(compiler.as_encoded_bytes());
    for flag in FLAGS {
        hash.update(flag);
    }
    for name in SOURCES.into_iter().chain(HEADERS) {
        let path = folder.join(name);
        hash.update(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

fn compile(folder: &Path, compiler: &OsString, output: &Path, log: &Path) -> Result<()> {
    let words = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(compiler);
    command.current_dir(folder).args(FLAGS).arg("-o").arg(output).args(SOURCES);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(words);
    let name = compiler.to_string_lossy();
    let mut group = Group::spawn(&mut command).with_context(|| format!("cannot start {name}"))?;
    let status = group
        .wait_until(Instant::now() + LIMIT)?
        .ok_or_else(|| anyhow!("{name} did not end in {} s", LIMIT.as_secs()))?;
    if !status.success() {
        bail!("{name} does not build the library: {}", fs::read_to_string(log).unwrap_or_default().trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("preload")
    }

    #[test]
    fn a_compiler_that_is_missing_or_fails_is_told() {
        let place = env::temp_dir().join(format!("portcullis-library-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        let build = |compiler: &str| {
            let error = compile(&folder(), &compiler.into(), &place.join("x.so"), &place.join("log"));
            format!("{:#}", error.unwrap_err())
        };
        assert!(build("/nonexistent/cc").contains("cannot start"));
        assert!(build("false").contains("does not build"));
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn the_key_depends_on_the_compiler() {
        let key = |compiler: &str| key(&folder(), &compiler.into()).unwrap();
        assert_eq!(key("gcc"), key("gcc"));
        assert_ne!(key("gcc"), key("clang"));
    }
}
