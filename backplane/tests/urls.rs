//! How URLs are read: strictly, and without ever printing a credential.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane::{
    Attach, Backplane as _, Bus, Capabilities, Error, ErrorKind, Link, LocalConnection, MembershipChange,
    MemoryBus, OutboundLimits, Protocol, Result, Schemes, Start, TopicSyntax, Wire, outbound,
};

#[track_caller]
fn refused(url: &str) -> Error {
    match backplane::resolve(url) {
        Ok(resolved) => panic!("{url} was accepted: {resolved:?}"),
        Err(error) => {
            assert_eq!(error.operation(), "open");
            error
        }
    }
}

#[track_caller]
fn invalid(url: &str, says: &str) {
    let error = refused(url);
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains(says), "{error}\ndoes not say {says:?}");
}

#[test]
fn router_parameters_configure_the_node() {
    let config = backplane::resolve(
        "memory:?hub=Demo.ChatHub&prefix=my+app&wire=aspnetcore&server_name=r%C3%BCst&start=degraded&heartbeat=2m\
         &connect_timeout=1s&send_timeout=2s&ack_timeout=3s&result_timeout=4s&reconnect_min=5ms&reconnect_max=6ms\
         &queue_frames=7&queue_bytes=8KiB&tracked_positions=99",
    )
    .unwrap()
    .config;
    assert_eq!(config.hub.as_str(), "Demo.ChatHub");
    assert_eq!(config.prefix.as_deref(), Some("my app"));
    assert!(matches!(&config.wire, Wire::AspNetCore { server_name: Some(name) } if name == "rüst"));
    assert_eq!(config.start, Start::Degraded);
    assert_eq!(config.heartbeat, Duration::from_secs(120));
    assert_eq!(config.connect_timeout, Duration::from_secs(1));
    assert_eq!(config.send_timeout, Duration::from_secs(2));
    assert_eq!(config.ack_timeout, Duration::from_secs(3));
    assert_eq!(config.result_timeout, Duration::from_secs(4));
    assert_eq!(config.reconnect_min, Duration::from_millis(5));
    assert_eq!(config.reconnect_max, Duration::from_millis(6));
    assert_eq!((config.queue_frames, config.queue_bytes, config.tracked_positions), (7, 8192, 99));
}

#[test]
fn without_parameters_the_defaults_hold() {
    let config = backplane::resolve("memory:").unwrap().config;
    assert_eq!(format!("{config:?}"), format!("{:?}", backplane::RouterConfig::default()));
    assert!(backplane::resolve("MEMORY://").is_ok());
}

#[test]
fn wrong_values_are_refused_with_the_form_they_should_have() {
    invalid("memory:?heartbeat=10", "`500ms`, `10s` or `2m`");
    invalid("memory:?heartbeat=1ms", "heartbeat must be at least 100 ms");
    invalid("memory:?send_timeout=0s", "must be above 0");
    invalid("memory:?queue_frames=many", "`queue_frames` must be a whole number");
    invalid("memory:?queue_bytes=1MB", "`8MiB`");
    invalid("memory:?wire=json", "`native` or `aspnetcore`");
    invalid("memory:?start=", "`strict` or `degraded`");
    invalid("memory:?hub=", "`hub` is empty");
    invalid("memory:?server_name=x", "needs `wire=aspnetcore`");
    invalid("memory:?prefix=%FF", "`prefix` is not percent-encoded UTF-8");
}

#[test]
fn unknown_parameters_are_refused_with_a_list_of_those_that_exist() {
    for known in ["hartbeat", "max_frame, inbox_frames, inbox_bytes, history", "heartbeat", "wire"] {
        invalid("memory:?hartbeat=10s", known);
    }
    invalid("memory:?Hub=chat", "no parameter `Hub`");
    invalid("memory:?max_frame=lots", "`max_frame` must be a number of bytes");
}

#[test]
fn repeated_parameters_are_refused_however_they_are_written() {
    invalid("memory:?hub=a&hub=a", "`hub` is given twice");
    invalid("memory:?max_frame=1&m%61x_frame=2", "`max_frame` is given twice");
}

#[test]
fn unknown_schemes_are_refused_with_a_list_of_those_that_are_compiled_in() {
    let compiled = format!("compiled in: {}", Schemes::compiled().names().collect::<Vec<_>>().join(", "));
    assert!(compiled.contains("memory"));
    invalid("carrier-pigeon://roof", &format!("`carrier-pigeon` is not a known scheme; {compiled}"));
    invalid("localhost:6379", &compiled);
}

#[cfg(not(feature = "redis"))]
#[test]
fn known_schemes_name_the_feature_that_brings_them() {
    invalid("redis://localhost", "enable the feature `redis`");
    invalid("REDISS://localhost", "enable the feature `redis`");
}

#[cfg(feature = "redis")]
#[test]
fn redis_is_compiled_in_and_as_strict() {
    let resolved = backplane::resolve("redis://localhost?hub=chat").unwrap();
    assert_eq!(resolved.config.hub.as_str(), "chat");
    assert!(backplane::resolve("rediss://localhost").is_ok());
    assert_eq!(refused("redis://localhost?no_such_thing=1").kind(), ErrorKind::InvalidConfig);
    assert!(Schemes::compiled().names().any(|name| name == "rediss"));
}

#[cfg(not(feature = "postgres"))]
#[test]
fn a_database_that_is_not_compiled_in_names_its_feature() {
    invalid("postgres://localhost", "enable the feature `postgres`");
    invalid("postgresql://localhost", "enable the feature `postgres`");
}

#[cfg(not(feature = "mssql"))]
#[test]
fn a_connection_string_is_known_for_what_it_is() {
    invalid("Server=tcp:db,1433;Database=app;User Id=sa;Password=x", "enable the feature `mssql`");
}

#[cfg(feature = "mssql")]
#[test]
fn a_connection_string_opens_sql_server() {
    let resolved = backplane::resolve("Server=tcp:db,1433;Database=app;User Id=sa;Password=hunter2").unwrap();
    assert!(resolved.bus.capabilities().resume);
    assert!(!format!("{resolved:?}").contains("hunter2"));
}

#[cfg(feature = "sqlite")]
#[test]
fn a_file_of_sqlite_is_a_bus_that_resumes() {
    let resolved = backplane::resolve("sqlite:demo.db?hub=chat&retention=90s").unwrap();
    assert_eq!(resolved.config.hub.as_str(), "chat");
    assert!(resolved.bus.capabilities().resume);
    invalid("sqlite:demo.db?retention=soon", "`retention`");
}

#[cfg(not(any(feature = "amqp", feature = "nats", feature = "servicebus")))]
#[test]
fn a_message_bus_that_is_not_compiled_in_names_its_feature() {
    invalid("amqps://localhost", "enable the feature `amqp`");
    invalid("tls://localhost", "enable the feature `nats`");
    invalid("servicebus://localhost", "enable the feature `servicebus`");
    let string = "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=k;SharedAccessKey=hunter2=";
    invalid(string, "enable the feature `servicebus`");
}

#[test]
fn layouts_of_redis_that_cannot_be_used_say_what_to_write_instead() {
    for url in ["redis+sentinel://localhost/master", "redis-cluster://localhost"] {
        let error = refused(url);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("redis://"), "{error}");
    }
}

#[test]
fn what_is_not_a_url_is_refused() {
    for nonsense in ["", "memory", ":", "://", "1x:", "a b:", "mem%6Fry:"] {
        invalid(nonsense, "not a URL");
    }
    invalid("memory://host", "neither host nor path");
    invalid("memory:bus", "neither host nor path");
    invalid("memory:#bus", "%23");
    invalid("memory://@host", "are empty");
    invalid("memory://:@host?hub=chat", "are empty");
}

#[test]
fn no_error_and_no_debug_prints_a_credential() {
    let urls = [
        "hunter2",
        "hunter2@localhost",
        "root:hunter2@localhost:6379",
        "hunter2:x@localhost",
        "nowhere://root:hunter2@localhost",
        "postgres://root:hunter2@localhost",
        "redis+sentinel://root:hunter2@localhost",
        "redis://root:hunter2@localhost?what=1",
        "redis://root:hunter2@localhost?hub=1&hub=2",
        "redis://root:hunter2@localhost:port",
        "redis://root:hunter2@localhost#x",
        "redis://root:a/hunter2@localhost",
        "redis://root:a?hunter2@localhost",
        "redis://root:a?hunter2&hunter2=hunter2@localhost",
        "redis://root:a#hunter2@localhost",
        "redis://root:hunter2%@localhost",
        "redis://:hunter2@",
        "redis://localhost,password=hunter2",
        "redis://localhost:6379,password=hunter2,ssl=true",
        "redis://localhost;password=hunter2",
        "memory://root:hunter2@localhost",
    ];
    for url in urls {
        let printed = match backplane::resolve(url) {
            Ok(resolved) => format!("{resolved:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!printed.contains("hunter2"), "{url} printed {printed}");
    }
}

#[tokio::test]
async fn a_bus_alone_takes_no_parameter_of_a_node() {
    assert!(backplane::open_bus("memory:?max_frame=1KiB&inbox_frames=9&inbox_bytes=1MiB&history=5").is_ok());
    let error = backplane::open_bus("memory:?hub=chat").unwrap_err();
    assert!(error.to_string().contains("`hub` configures a node"), "{error}");
}

#[test]
fn parameters_reach_the_memory_bus() {
    assert!(backplane::open_bus("memory:?history=5").unwrap().capabilities().resume);
    assert!(!backplane::open_bus("memory:").unwrap().capabilities().resume);
}

#[tokio::test]
async fn each_open_of_memory_is_a_new_bus_and_nodes_of_one_value_share_it() {
    let resolved = backplane::resolve("memory:").unwrap();
    let (north, south) = (resolved.open().await.unwrap(), resolved.open().await.unwrap());
    let stranger = backplane::open("memory:").await.unwrap();
    let (outbound, _receiver) = outbound(OutboundLimits::default());
    let id = south.new_connection_id();
    let connection = LocalConnection { id: id.clone(), user: None, protocol: Protocol::JSON, outbound };
    let _registration = south.register(connection).await.unwrap();

    assert!(north.update_group(MembershipChange::join(&id, "group")).await.is_ok());
    let error = stranger.update_group(MembershipChange::join(&id, "group")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionNotFound, "{error}");
    for node in [north, south, stranger] {
        node.shutdown().await.unwrap();
    }
}

/// The memory bus, as a broker with narrow topics would show itself.
#[derive(Debug)]
struct Narrow(MemoryBus);

#[async_trait]
impl Bus for Narrow {
    fn capabilities(&self) -> Capabilities {
        Capabilities { topics: TopicSyntax::Tokens, ..self.0.capabilities() }
    }

    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        self.0.connect(attach).await
    }
}

#[tokio::test]
async fn a_foreign_bus_is_opened_by_its_scheme_and_keeps_its_own_parameters() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let schemes = Schemes::compiled().with("narrow", {
        let seen = seen.clone();
        move |url| {
            seen.lock().unwrap().push(url.to_owned());
            Ok(Arc::new(Narrow(MemoryBus::new())))
        }
    });
    assert!(schemes.names().any(|name| name == "narrow"));

    let node = schemes.open("Narrow://u:p@host/path?color=%72ed&hub=chat&size=2").await.unwrap();
    assert!(node.health().borrow().is_up());
    node.shutdown().await.unwrap();
    assert_eq!(*seen.lock().unwrap(), ["Narrow://u:p@host/path?color=%72ed&size=2"]);

    // The layout of .NET needs topics that this bus cannot carry.
    let error = schemes.open("narrow:?wire=aspnetcore").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
#[should_panic(expected = "not a lower-case URL scheme")]
fn a_scheme_that_no_url_can_have_is_a_mistake_of_the_program() {
    let _ = Schemes::compiled().with("My Bus", |_| Ok(Arc::new(MemoryBus::new())));
}
