//! Domains: blocked, identity and paging.

use crate::link::Link;
use crate::space::Space;
use crate::transport::Transport;
use core::fmt;
use portcullis_hal::{Arc, Hal, SpaceKey};
use portcullis_iommu::{Domain, DomainInfo, DomainKind};

/// What a domain handle stands for.
pub(crate) enum Kind<H: Hal, T: Transport> {
    Blocked,
    Identity,
    /// What an identity domain is for one endpoint, where the device has no pass-through: all addresses mapped to
    /// themselves, but for the endpoint's reserved regions.
    Direct(Arc<Space<H, T>>),
    Paging(Arc<Space<H, T>>),
}

impl<H: Hal, T: Transport> Clone for Kind<H, T> {
    fn clone(&self) -> Self {
        match self {
            Self::Blocked => Self::Blocked,
            Self::Identity => Self::Identity,
            Self::Direct(space) => Self::Direct(space.clone()),
            Self::Paging(space) => Self::Paging(space.clone()),
        }
    }
}

/// The [`Domain`] that users hold.
pub(crate) struct VirtioDomain<H: Hal, T: Transport> {
    pub(crate) link: Arc<Link<H, T>>,
    pub(crate) kind: Kind<H, T>,
    pub(crate) key: SpaceKey,
}

impl<H: Hal, T: Transport> VirtioDomain<H, T> {
    pub(crate) fn new(link: &Arc<Link<H, T>>, kind: Kind<H, T>) -> Self {
        Self { link: link.clone(), kind, key: SpaceKey::new() }
    }

    pub(crate) fn space(&self) -> Option<&Space<H, T>> {
        match &self.kind {
            Kind::Paging(space) => Some(space),
            _ => None,
        }
    }
}

impl<H: Hal, T: Transport> Domain for VirtioDomain<H, T> {
    fn info(&self) -> DomainInfo {
        DomainInfo {
            kind: match self.kind {
                Kind::Blocked => DomainKind::Blocked,
                Kind::Identity | Kind::Direct(_) => DomainKind::Identity,
                Kind::Paging(_) => DomainKind::Paging,
            },
            stage: None,
            root: None,
        }
    }

    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let limits = &self.link.limits;
        match &self.kind {
            Kind::Blocked => write!(out, "domain {}", limits.blocked.0),
            Kind::Identity => match limits.identity {
                Some(id) => write!(out, "domain {}", id.0),
                None => write!(out, "a domain for each endpoint"),
            },
            Kind::Direct(space) | Kind::Paging(space) => write!(out, "domain {}", space.id.0),
        }
    }
}
