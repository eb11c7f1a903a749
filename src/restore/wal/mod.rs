//! Archived WAL on its way back: segments for a server that recovers, and the search for the moment
//! at which it shall stop.
//!
//! Invariants: what is handed out is WAL of this cluster at this place, checked page by page; a
//! hole is never passed over in silence.

mod archive;
pub mod control;
pub mod fetch;
pub mod get;
pub mod line;
pub mod moment;
pub mod prefetch;
mod read;
mod refusal;
mod search;
pub mod target;
pub mod verdict;

pub use read::{Content, Source};
pub use search::{Found, Searched};
