//! How much code the drivers are: the functions of each crate in the kernel as it ships, by its symbols.
//!
//! Code belongs to the crate in which a function is written, generic or not; what is inlined belongs to whoever it is
//! inlined in.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use object::{Object, ObjectSymbol, SymbolKind};

use crate::profile::Arch;

/// What all crates of the workspace begin with.
const PREFIX: &str = "portcullis_";

/// Crates that are the kernel's, and no drivers.
const KERNEL: [&str; 4] = ["kernel", "arch", "operations", "regions"];

/// Bytes of code by crate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Code {
    pub(super) arch: String,
    pub(super) bytes: BTreeMap<String, u64>,
}

/// Reads a kernel's symbols.
pub(super) fn measure(arch: Arch, kernel: &Path) -> Result<Code> {
    let data = fs::read(kernel).with_context(|| format!("cannot read {}", kernel.display()))?;
    let file = object::File::parse(&*data).context("the kernel is no ELF file")?;
    // Several names may stand for one function.
    let functions: BTreeMap<u64, (u64, String)> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| {
            let name = format!("{:#}", rustc_demangle::demangle(symbol.name().ok()?));
            Some((symbol.address(), (symbol.size(), crate_of(&name)?.to_owned())))
        })
        .collect();
    let mut bytes = BTreeMap::new();
    for (size, name) in functions.into_values() {
        *bytes.entry(name).or_insert(0) += size;
    }
    Ok(Code { arch: arch.name().to_owned(), bytes })
}

/// The driver's crate that a function's name begins with, or whose type or trait it is a method of.
fn crate_of(function: &str) -> Option<&str> {
    let name = function.split_once(PREFIX)?.1.split("::").next()?;
    (!KERNEL.contains(&name)).then_some(name)
}

/// The rows of a table: crates, and their bytes on each architecture.
pub(super) fn table(all: &[Code]) -> Vec<Vec<String>> {
    let heading = std::iter::once("bytes of code".to_owned());
    let mut rows: Vec<Vec<String>> = vec![heading.chain(all.iter().map(|code| code.arch.clone())).collect()];
    let crates: BTreeMap<&String, ()> =
        all.iter().flat_map(|code| code.bytes.keys()).map(|name| (name, ())).collect();
    for name in crates.into_keys() {
        let bytes =
            |code: &Code| code.bytes.get(name).map_or_else(|| "-".to_owned(), |bytes| super::grouped(*bytes));
        rows.push(std::iter::once(name.clone()).chain(all.iter().map(bytes)).collect());
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_belongs_to_the_first_driver_that_its_name_names() {
        for (name, of) in [
            ("portcullis_vtd::queue::Queue<H,M>::submit", Some("vtd")),
            ("<portcullis_smmuv3::Driver<H,M> as portcullis_iommu::unit::Unit>::attach", Some("smmuv3")),
            ("core::ptr::drop_in_place<portcullis_hal::frames::Frames<H>>", Some("hal")),
            ("portcullis_kernel::memory::init", None),
            ("core::fmt::write", None),
        ] {
            assert_eq!(crate_of(name), of, "{name}");
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_crate_of_any_architecture() {
        let code = |arch: &str, name: &str| Code {
            arch: arch.to_owned(),
            bytes: BTreeMap::from([(name.to_owned(), 1234)]),
        };
        let rows = table(&[code("a", "vtd"), code("b", "hal")]);
        assert_eq!(rows[1..], [["hal", "-", "1 234"], ["vtd", "1 234", "-"]]);
    }
}
