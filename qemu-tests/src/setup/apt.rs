//! The host's own apt configuration, read for the address of a Debian mirror.
//!
//! Both forms are understood: one-line `.list` files and deb822 `.sources` files.

use std::fs;
use std::path::{Path, PathBuf};

/// Where a suite of Debian proper can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The address as apt takes it; methods such as `mirror+file:` included.
    pub uri: String,
    /// The suites named beside it.
    pub suites: Vec<String>,
    /// The components named beside it.
    pub components: Vec<String>,
    /// Whether the owner of the machine trusts it without signatures.
    pub trust: Trust,
}

/// What the host's configuration says about signatures of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Signatures are checked.
    Signed,
    /// `trusted=yes`: they are not.
    Declared,
}

/// The mirror to ask for other suites of the same distribution: the entry for the running release, and not the one
/// for its security updates, which is another archive.
pub fn mirror<'a>(sources: &'a [Source], codename: &str) -> Option<&'a Source> {
    let usable = |source: &&Source| {
        source.components.iter().any(|component| component == "main") && !source.uri.starts_with("cdrom:")
    };
    let aliases = [codename, "stable", "oldstable", "testing"];
    let names = |source: &&Source| source.suites.iter().any(|suite| aliases.contains(&suite.as_str()));
    let updates = |source: &&Source| {
        source.suites.iter().any(|suite| {
            suite.strip_prefix(codename).is_some_and(|rest| rest == "-updates" || rest == "-backports")
        })
    };
    let candidates: Vec<&Source> = sources.iter().filter(usable).collect();
    candidates.iter().copied().find(names).or_else(|| candidates.iter().copied().find(updates))
}

/// Every binary source in apt's directory, in apt's order.
pub fn read_sources(apt_dir: &Path) -> Vec<Source> {
    let mut files = vec![apt_dir.join("sources.list")];
    let mut parts: Vec<PathBuf> = fs::read_dir(apt_dir.join("sources.list.d"))
        .map(|entries| entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect())
        .unwrap_or_default();
    parts.sort();
    files.extend(parts);
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(parse_list(&text)),
            Some("sources") => sources.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    sources
}

/// Parses the one-line form: `deb [options] URI SUITE COMPONENT...`.
pub fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    // Not `deb-src`.
    if !rest.starts_with([' ', '\t', '[']) {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let uri = words.next()?.to_owned();
    let suites = vec![words.next()?.to_owned()];
    let components = words.map(str::to_owned).collect();
    let declared = options.split_whitespace().any(|option| option.eq_ignore_ascii_case("trusted=yes"));
    Some(Source { uri, suites, components, trust: if declared { Trust::Declared } else { Trust::Signed } })
}

/// Parses deb822 stanzas. A stanza with several addresses gives one source for each.
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    // A last empty line closes the last stanza.
    for line in text.lines().chain([""]) {
        if line.trim_start().starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza_sources(&stanza));
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            stanza.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza_sources(stanza: &[(String, String)]) -> Vec<Source> {
    let field =
        |name: &str| stanza.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
    let words = |name: &str| field(name).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let disabled = matches!(field("enabled").to_ascii_lowercase().as_str(), "no" | "false" | "0" | "off");
    if disabled || !words("types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let trust = if field("trusted").eq_ignore_ascii_case("yes") { Trust::Declared } else { Trust::Signed };
    words("uris")
        .into_iter()
        .map(|uri| Source { uri, suites: words("suites"), components: words("components"), trust })
        .collect()
}

/// The lines of `apt-config dump` that say how the host reaches a mirror (proxies, certificates, retries). Languages
/// and the like are left out: they only make the download larger.
pub fn transport_settings(dump: &str) -> String {
    let wanted = |line: &&str| {
        let line = line.to_ascii_lowercase();
        line.starts_with("acquire::")
            && ![
                "acquire::languages",
                "acquire::indextargets",
                "acquire::compressiontypes",
                "acquire::gzipindexes",
            ]
            .iter()
            .any(|prefix| line.starts_with(prefix))
    };
    dump.lines().filter(wanted).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_sources_are_parsed_with_options_and_comments() {
        let text = "# comment\n\
            deb http://mirror.example/debian bookworm main contrib # tail\n\
            deb-src http://mirror.example/debian bookworm main\n\
            deb [arch=amd64 trusted=yes] https://other.example/debian bookworm-updates main\n\
            deb\t[ signed-by=/k.gpg ]\tcdrom:[Debian] bookworm main\n\
            deb http://broken.example\n";
        let sources = parse_list(text);
        assert_eq!(sources.len(), 3);
        assert_eq!(sources[0].uri, "http://mirror.example/debian");
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(sources[0].trust, Trust::Signed);
        assert_eq!(sources[1].trust, Trust::Declared);
        assert_eq!(mirror(&sources, "bookworm"), Some(&sources[0]));
    }

    #[test]
    fn deb822_sources_are_parsed_with_comments_and_continuations() {
        let text = "Types: deb\n\
            # a remark inside the stanza\n\
            URIs: http://a.example/debian\n  http://b.example/debian\n\
            Suites: bookworm bookworm-updates\n\
            Components: main\n\
            Signed-By:\n -----BEGIN PGP\n .\n abc\n\
            \n\
            Types: deb\nURIs: http://a.example/security\nSuites: bookworm-security\nComponents: main\n\
            \n\
            Types: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n\
            \n\
            Types: deb-src\nURIs: http://src.example/debian\nSuites: bookworm\nComponents: main\n";
        let sources = parse_deb822(text);
        let uris: Vec<&str> = sources.iter().map(|source| source.uri.as_str()).collect();
        assert_eq!(uris, ["http://a.example/debian", "http://b.example/debian", "http://a.example/security"]);
        assert_eq!(mirror(&sources, "bookworm"), Some(&sources[0]));
    }

    #[test]
    fn the_security_archive_and_foreign_repositories_are_no_mirror() {
        let text = "deb http://a.example/security bookworm-security main\n\
            deb http://vendor.example/apt nodistro main\n\
            deb http://c.example/debian bookworm contrib\n";
        assert_eq!(mirror(&parse_list(text), "bookworm"), None);
        let updates = parse_list("deb http://b.example/debian bookworm-updates main\n");
        assert_eq!(mirror(&updates, "bookworm"), Some(&updates[0]));
    }

    #[test]
    fn a_source_by_alias_counts() {
        let sources = parse_list("deb http://a.example/debian stable main\n");
        assert_eq!(
            mirror(&sources, "trixie").map(|source| source.uri.as_str()),
            Some("http://a.example/debian")
        );
    }

    #[test]
    fn only_transport_settings_are_taken_over() {
        let dump = "APT::Sandbox::User \"_apt\";\nAcquire::http::Proxy \"http://p:1\";\n\
            Acquire::Languages:: \"de\";\nDPkg::Post-Invoke:: \"rm\";\nAcquire::Retries \"4\";\n";
        assert_eq!(
            transport_settings(dump),
            "Acquire::http::Proxy \"http://p:1\";\nAcquire::Retries \"4\";\n"
        );
    }
}
