//! The actors of Ponder: state behind mailboxes, and the step that asks them in order.
//!
//! Read [`step::step`] first, then [`message`]: every message, in the order in which a step sends
//! them. Rules and state are plain structs of the engine; the actors here give them a mailbox, a
//! span and a supervisor.

pub mod device;
pub mod draft;
pub mod life;
pub mod message;
pub mod port;
pub mod shells;
pub mod step;
pub mod streamer;
pub mod supervisor;
pub mod system;
pub mod trace;
pub mod view;

pub use device::{BatchRunner, Loader};
pub use draft::DraftSetup;
pub use shells::KeepLengths;
pub use streamer::Update;
pub use system::{Generation, Handle, Submission, System, SystemOptions};
