//! The core of the backplane: the seam that a message system implements ([`Bus`]), everything that is written once
//! above it ([`Router`], which implements [`Backplane`]), the wire formats, and the embedded memory bus.

mod backplane;
mod bus;
mod config;
mod error;
mod health;
mod id;
pub mod memory;
mod message;
mod outbound;
pub mod parameters;
mod router;
mod target;
mod topic;
pub mod wire;

pub use backplane::{Acceptance, Backplane, BackplaneExt, LocalConnection, Registration, RegistrationOwner};
pub use bus::{
    Attach, Bus, Capabilities, Delivery, Limits, Link, LinkSender, LossReason, Order, Outgoing, Position,
    Reach,
};
pub use config::{RouterConfig, Start, Wire};
pub use error::{Error, ErrorKind, Partial, Result};
pub use health::{Event, Gap, Health, LinkState, Stats};
pub use id::{AckId, ConnectionId, GroupName, HubName, InvocationId, NodeId, Protocol, UserId};
pub use memory::MemoryBus;
pub use message::{
    AbortReason, ClientInvocation, ClientResult, EncodedMessage, InvocationEncoder, Membership,
    MembershipChange,
};
pub use outbound::{
    CloseReason, OutboundItem, OutboundLimits, OutboundReceiver, OutboundSender, OverflowPolicy, Pushed,
    outbound,
};
pub use router::Router;
pub use target::Target;
pub use topic::{Topic, TopicSyntax};
pub use wire::WireFormat;
