//! Maps that are sent to the unit together.

use crate::{GatherBusy, SpaceKey, SyncError};
use thiserror::Error;

/// Maps that wait to be sent with one notification, where the unit is told of each mapping; where tables are in memory,
/// maps do not wait.
///
/// It belongs to the first domain that uses it, until that domain sends it. What was queued is sent at the latest when
/// the unit's queue is full, and when something is unmapped that it concerns; a queue that is dropped only loses the
/// answers.
#[derive(Debug, Default)]
#[must_use]
pub struct QueuedMaps {
    owner: Option<SpaceKey>,
    token: u64,
    mark: u64,
}

/// Why not everything that was queued is mapped for certain. It can all be unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendMapsError {
    /// The unit refused a map: one of the queue's, or one that was queued for the same domain meanwhile. The others are
    /// made.
    #[error("the unit refused queued mappings")]
    Refused,
    /// The unit did not confirm them.
    #[error(transparent)]
    Sync(#[from] SyncError),
}

impl From<GatherBusy> for SendMapsError {
    fn from(busy: GatherBusy) -> Self {
        Self::Sync(busy.into())
    }
}

impl QueuedMaps {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { owner: None, token: 0, mark: 0 }
    }

    /// Whether no domain has used it since it was sent.
    pub fn is_empty(&self) -> bool {
        self.owner.is_none()
    }

    /// For back ends: claims the queue for `space`. With the first claim it keeps `mark`, a count of the back end's own
    /// (its refusals, say).
    ///
    /// # Errors
    ///
    /// It belongs to another domain.
    pub fn claim(&mut self, space: SpaceKey, mark: u64) -> Result<(), GatherBusy> {
        match self.owner {
            Some(owner) if owner != space => Err(GatherBusy),
            Some(_) => Ok(()),
            None => {
                *self = Self { owner: Some(space), token: 0, mark };
                Ok(())
            }
        }
    }

    /// For back ends: what the first claim kept.
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// For back ends: what is to be waited for, in a count of the back end's own; 0 at first.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// For back ends: raises the token, which never goes down before the queue is sent.
    pub fn raise_token(&mut self, token: u64) {
        self.token = self.token.max(token);
    }

    /// For back ends: the queue was sent.
    pub fn end(&mut self) {
        *self = Self::new();
    }
}
