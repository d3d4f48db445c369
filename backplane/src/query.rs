//! Which parameters of a URL configure the node.

use backplane_core::parameters::{Parameters, invalid, is_unknown};
use backplane_core::{Error, HubName, Result, RouterConfig, Start, Wire};

/// What the facade takes for the node, for every bus.
const ROUTER: &[&str] = &[
    "hub",
    "prefix",
    "wire",
    "server_name",
    "start",
    "heartbeat",
    "connect_timeout",
    "send_timeout",
    "ack_timeout",
    "result_timeout",
    "reconnect_min",
    "reconnect_max",
    "queue_frames",
    "queue_bytes",
    "tracked_positions",
];

/// The node's configuration, and the URL without the parameters that made it; the rest is kept byte for byte.
pub(crate) fn split(url: &str) -> Result<(RouterConfig, String)> {
    let (address, mut parameters) = Parameters::of(url)?;
    let config = router_config(&mut parameters)?;
    Ok((config, format!("{address}{}", parameters.rest())))
}

/// For a caller who wants a bus alone: a parameter of the node would have no effect.
pub(crate) fn refuse_router_parameters(url: &str) -> Result<()> {
    let (_, mut parameters) = Parameters::of(url)?;
    match ROUTER.iter().find(|name| parameters.take(name).is_some()) {
        None => Ok(()),
        Some(name) => Err(invalid(format!(
            "the parameter `{name}` configures a node and has no effect on a bus alone; `resolve` returns both"
        ))),
    }
}

/// An error of a bus about its URL, which knows nothing of the node's parameters.
pub(crate) fn tell_ours(error: Error) -> Error {
    match error.context() {
        Some(context) if is_unknown(&error) => {
            let context = format!("{context}, and a node {}", ROUTER.join(", "));
            error.with_context(context)
        }
        _ => error,
    }
}

fn router_config(parameters: &mut Parameters<'_>) -> Result<RouterConfig> {
    let mut config = RouterConfig::default();
    if let Some(hub) = parameters.take("hub") {
        if hub.is_empty() {
            return Err(invalid("the parameter `hub` is empty"));
        }
        config.hub = HubName::from(hub);
    }
    config.prefix = parameters.take("prefix").or(config.prefix);
    let server_name = parameters.take("server_name");
    config.wire = match parameters.take("wire").as_deref() {
        Some("aspnetcore") => Wire::AspNetCore { server_name },
        None | Some("native") if server_name.is_some() => {
            return Err(invalid("the parameter `server_name` needs `wire=aspnetcore`"));
        }
        None | Some("native") => Wire::Native,
        Some(_) => return Err(invalid("the parameter `wire` is `native` or `aspnetcore`")),
    };
    config.start = match parameters.take("start").as_deref() {
        None | Some("strict") => Start::Strict,
        Some("degraded") => Start::Degraded,
        Some(_) => return Err(invalid("the parameter `start` is `strict` or `degraded`")),
    };
    parameters.duration("heartbeat", &mut config.heartbeat)?;
    parameters.duration("connect_timeout", &mut config.connect_timeout)?;
    parameters.duration("send_timeout", &mut config.send_timeout)?;
    parameters.duration("ack_timeout", &mut config.ack_timeout)?;
    parameters.duration("result_timeout", &mut config.result_timeout)?;
    parameters.duration("reconnect_min", &mut config.reconnect_min)?;
    parameters.duration("reconnect_max", &mut config.reconnect_max)?;
    parameters.number("queue_frames", &mut config.queue_frames)?;
    parameters.size("queue_bytes", &mut config.queue_bytes)?;
    parameters.number("tracked_positions", &mut config.tracked_positions)?;
    config.validate()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_the_url_is_kept_byte_for_byte() {
        let (config, rest) =
            split("redis://u:p%40ss@host:1/3?a=%41+b&hub=chat&c&wire=native&d=%2F").expect("a good URL");
        assert_eq!(rest, "redis://u:p%40ss@host:1/3?a=%41+b&c&d=%2F");
        assert_eq!(config.hub.as_str(), "chat");
        assert_eq!(split("memory:?hub=chat").expect("a good URL").1, "memory:");
    }

    #[test]
    fn every_parameter_of_the_node_is_taken() {
        let all: String = ROUTER.iter().map(|name| format!("&{name}=x")).collect();
        let url = format!("memory:?a=1{all}");
        let (_, mut parameters) = Parameters::of("memory:").expect("a good URL");
        router_config(&mut parameters).expect("the defaults");

        let known = format!("{parameters:?}");
        assert_eq!(known.matches('"').count() / 2, ROUTER.len(), "{known}");
        assert!(ROUTER.iter().all(|name| known.contains(&format!("{name:?}"))), "{known}");
        assert!(Parameters::of(&url).is_ok());
        for name in ROUTER {
            assert!(refuse_router_parameters(&format!("memory:?{name}=1")).is_err(), "{name}");
        }
    }
}
