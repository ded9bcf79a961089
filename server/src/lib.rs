//! Ponder.
