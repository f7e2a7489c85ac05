//! Who can reach the panic handler in a linked program, by its relocations and line tables.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use addr2line::Loader;
use anyhow::{Context, Result, anyhow};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind, SymbolKind};

/// A function of the program.
#[derive(Clone, Debug)]
struct Function {
    end: u64,
    name: String,
}

/// A call that leads to the panic handler.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    /// The source file, from the workspace's root if it is in there.
    pub(super) file: String,
    /// The line; 0 if it is not known.
    pub(super) line: u32,
    /// The innermost function that is not the standard library's, without its generic arguments.
    pub(super) function: String,
    /// The function of the standard library that it calls.
    pub(super) calls: String,
}

/// All calls from outside the standard library that can end in the function `handler`.
pub(super) fn sites(program: &Path, root: &Path, handler: &str) -> Result<BTreeSet<Site>> {
    let data = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let file = object::File::parse(&*data).context("the probe is no ELF file")?;
    let lines = Loader::new(program).map_err(|error| anyhow!("no line tables in the probe: {error}"))?;
    let functions = functions(&file);
    let callers = callers(&file, &functions)?;
    let start = functions
        .iter()
        .find(|(_, function)| function.name.ends_with(handler))
        .map(|(start, _)| *start)
        .ok_or_else(|| anyhow!("the probe has no {handler}"))?;
    let mut sites = BTreeSet::new();
    let mut seen = BTreeSet::from([start]);
    let mut open = vec![start];
    while let Some(callee) = open.pop() {
        let name = |start| functions.get(&start).map_or("?", |function| function.name.as_str());
        for &(at, caller) in callers.get(&callee).into_iter().flatten() {
            if let Some((file, line, function)) = place(&lines, root, at)? {
                let function = function.unwrap_or_else(|| plain(name(caller)));
                sites.insert(Site { file, line, function, calls: plain(name(callee)) });
            } else if seen.insert(caller) {
                // The standard library's own: whoever calls that is to blame.
                open.push(caller);
            }
        }
    }
    Ok(sites)
}

fn functions(file: &object::File<'_>) -> BTreeMap<u64, Function> {
    file.symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| {
            let name = format!("{:#}", rustc_demangle::demangle(symbol.name().ok()?));
            Some((symbol.address(), Function { end: symbol.address() + symbol.size().max(1), name }))
        })
        .collect()
}

/// For each function the places that refer to it, with the function that each is in.
fn callers(
    file: &object::File<'_>,
    functions: &BTreeMap<u64, Function>,
) -> Result<BTreeMap<u64, Vec<(u64, u64)>>> {
    let containing = |address: u64| {
        let (start, function) = functions.range(..=address).next_back()?;
        (address < function.end).then_some(*start)
    };
    let mut callers: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        for (at, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
            let symbol = file.symbol_by_index(symbol)?;
            let target = symbol.address().wrapping_add_signed(relocation.addend());
            // A branch on x86 is relative to the next instruction, and the addend says so.
            let found = [target, target.wrapping_add(4)].into_iter().find(|at| functions.contains_key(at));
            if let (Some(callee), Some(caller)) = (found, containing(at))
                && callee != caller
            {
                callers.entry(callee).or_default().push((at, caller));
            }
        }
    }
    Ok(callers)
}

/// File, line and name of the innermost function at an address that is not the standard library's.
fn place(lines: &Loader, root: &Path, address: u64) -> Result<Option<(String, u32, Option<String>)>> {
    let mut frames = lines.find_frames(address).map_err(|error| anyhow!("bad line tables: {error}"))?;
    while let Some(frame) = frames.next().context("bad line tables")? {
        let Some(location) = frame.location else { continue };
        let Some(file) = location.file.filter(|file| !file.starts_with("/rustc/")) else { continue };
        let file = match file.split_once("/registry/src/") {
            Some((_, file)) => file.split_once('/').map_or(file, |(_, file)| file),
            None => file.strip_prefix(&*root.to_string_lossy()).unwrap_or(file).trim_start_matches('/'),
        };
        let name = frame.function.and_then(|name| name.demangle().ok().map(|name| plain(&name)));
        let name = name.filter(|name| !name.is_empty());
        return Ok(Some((file.to_owned(), location.line.unwrap_or(0), name)));
    }
    Ok(None)
}

/// A function's name without generic arguments: `<T as Trait>::f::<U>` becomes `<T as Trait>::f`, `T<U>::f` `T::f`.
fn plain(name: &str) -> String {
    let mut plain = String::new();
    let mut dropped = 0_u32;
    let mut before = ' ';
    for letter in name.chars() {
        let opens =
            letter == '<' && (dropped > 0 || before.is_alphanumeric() || matches!(before, ':' | '_' | '}'));
        let closes = letter == '>' && before != '-' && dropped > 0;
        if opens {
            dropped += 1;
        } else if closes {
            dropped -= 1;
        } else if dropped == 0 {
            plain.push(letter);
        }
        before = letter;
    }
    plain.replace("::::", "::").trim_end_matches(':').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_generic_arguments_only() {
        assert_eq!(plain("<a::T<b::U> as c::V<d>>::f::<e::<f> as g>"), "<a::T as c::V>::f");
        assert_eq!(plain("<alloc::vec::Vec<T>>::push"), "<alloc::vec::Vec>::push");
        assert_eq!(plain("core::panicking::panic_fmt"), "core::panicking::panic_fmt");
        assert_eq!(plain("x::f::<fn() -> u8>::{closure#0}<y>"), "x::f::{closure#0}");
    }
}
