//! The buses over AMQP of the backplane: RabbitMQ over AMQP 0-9-1, Azure Service Bus over AMQP 1.0.

#[cfg(feature = "amqp")]
pub mod rabbitmq;
#[cfg(feature = "servicebus")]
pub mod servicebus;

#[cfg(any(feature = "amqp", feature = "servicebus"))]
pub use backplane_tls::{Tls, TlsIdentity, TlsRoots};
#[cfg(feature = "amqp")]
pub use rabbitmq::{RabbitBus, RabbitConfig};
#[cfg(feature = "servicebus")]
pub use servicebus::{Credentials, Entities, Filters, ManagementAddress, ServiceBus, ServiceBusConfig};
