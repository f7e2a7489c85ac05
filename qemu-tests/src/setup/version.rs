//! QEMU's version numbers.

use std::fmt;

/// A release number, compared part by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// A version from its parts.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// The number at the beginning of `text`, `None` if there is none. Parts that are not there count as 0, and
    /// whatever follows the number (`-rc2`, `+ds`) is ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut parts = text[..end].split('.').filter(|part| !part.is_empty()).map(str::parse::<u32>);
        let major = parts.next()?.ok()?;
        let mut rest = || parts.next().map_or(Some(0), Result::ok);
        Some(Self { major, minor: rest()?, patch: rest()? })
    }

    /// The version in the first line of `qemu-system-* --version`.
    pub fn from_banner(banner: &str) -> Option<Self> {
        let (_, number) = banner.lines().next()?.split_once("version ")?;
        Self::parse(number)
    }

    /// The upstream version in a Debian package version (`1:11.1.3+ds-1~bpo13+1`), the epoch dropped.
    pub fn from_debian(version: &str) -> Option<Self> {
        let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
        Self::parse(upstream)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number_and_not_by_letter() {
        let parse = |text| Version::parse(text).unwrap();
        assert!(parse("11.0") > parse("9.2.4"));
        assert!(parse("11.0.0") == parse("11"));
        assert!(parse("10.2.99") < parse("11.0.0"));
        assert!(parse("11.1.3") > parse("11.1"));
    }

    #[test]
    fn versions_are_found_in_banners_and_package_versions() {
        let banner = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\nCopyright";
        assert_eq!(Version::from_banner(banner), Some(Version::new(11, 1, 3)));
        assert_eq!(
            Version::from_banner("QEMU emulator version 11.0.50 (v11.0.0-rc1)"),
            Some(Version::new(11, 0, 50))
        );
        assert_eq!(Version::from_debian("1:10.0.2+ds-2+deb13u1"), Some(Version::new(10, 0, 2)));
        assert_eq!(Version::from_debian("11.1.3~rc1"), Some(Version::new(11, 1, 3)));
    }

    #[test]
    fn text_without_a_number_is_no_version() {
        assert_eq!(Version::parse("rc1"), None);
        assert_eq!(Version::parse(""), None);
        assert_eq!(Version::from_banner("command not found"), None);
    }
}
