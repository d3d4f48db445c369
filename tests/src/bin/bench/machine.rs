//! What the figures were measured on, and how much processor time a process took.

use std::fs;
use std::time::Duration;

use backplane_conformance::broker::Redis;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::Result;

/// One line about the machine, the broker and the build.
pub(crate) async fn description(redis: &Redis) -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let model = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let model = model.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let load = fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split(' ').next().map(str::to_owned))
        .unwrap_or_else(|| "unknown".to_owned());
    let version = redis.command(&["INFO", "server"]).await?.text();
    let version = field(&version, "redis_version").unwrap_or("of unknown version");
    let build = if cfg!(debug_assertions) { "; NOT BUILT FOR SPEED: use --release" } else { "" };
    Ok(format!("machine: {cores} cores ({model}), load {load} at start, redis {version}{build}"))
}

/// In which unit the kernel tells programs of processor time: `USER_HZ`, 100 on every usual architecture.
const TICKS_PER_SECOND: u32 = 100;

/// Processor time that this process took so far, to 10 ms.
pub(crate) fn processor_time() -> Result<Duration> {
    processor_time_of_process(std::process::id())
}

/// Processor time that a process took so far, to 10 ms.
pub(crate) fn processor_time_of_process(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name of the program, in parentheses, may itself hold spaces and parentheses.
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // Fields 14 and 15 of proc(5), utime and stime; the first one here is field 3.
    let ticks = behind_name.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
    let ticks = ticks.sum::<std::result::Result<u32, _>>()?;
    Ok(Duration::from_secs(1) * ticks / TICKS_PER_SECOND)
}

/// Processor time that a process and its children took so far, those that have ended included, to 10 ms each.
pub(crate) fn processor_time_of_family(process: u32) -> Result<Duration> {
    let mut ticks = 0;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that ended meanwhile is counted with its parent next time.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        // From field 3 of proc(5) on: the parent is field 4; utime, stime and those of ended children are 14 to 17.
        let fields: Vec<u32> =
            behind_name.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
        let own = fields.get(10..14).ok_or("/proc/PID/stat lacks the processor times")?;
        if id == process {
            ticks += own.iter().sum::<u32>();
        } else if fields[0] == process {
            ticks += own[..2].iter().sum::<u32>();
        }
    }
    Ok(Duration::from_secs(1) * ticks / TICKS_PER_SECOND)
}

/// Memory of a process that is resident, in bytes.
pub(crate) fn resident(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kilobytes =
        field(&status, "VmRSS").and_then(|text| text.strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kilobytes.ok_or("/proc/PID/status lacks the resident memory")? * 1_024)
}

/// Lets this process open so many sockets, and the few files that it has beside them.
pub(crate) fn allow_open_files(sockets: usize) -> Result<()> {
    let wanted = sockets as u64 + 64;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        if let Some(most) = limit.maximum.filter(|most| *most < wanted) {
            return Err(format!("{wanted} open files are needed and the system allows {most}").into());
        }
        limit.current = Some(wanted);
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(())
}

/// Processor time that the whole machine took so far, and what its host took away from it.
pub(crate) fn processor_time_of_all() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields: Vec<u32> =
        stat.lines().next().unwrap_or_default().split_whitespace().flat_map(str::parse).collect();
    // user nice system (idle iowait) irq softirq steal, by proc(5); guests are counted in the first ones.
    let ticks = [0, 1, 2, 5, 6, 7].iter().map(|field| fields.get(*field)).sum::<Option<u32>>();
    Ok(Duration::from_secs(1) * ticks.ok_or("/proc/stat lacks the processor times")? / TICKS_PER_SECOND)
}

/// Processor time that the server took so far.
pub(crate) async fn processor_time_of(redis: &Redis) -> Result<Duration> {
    let answer = redis.command(&["INFO", "cpu"]).await?.text();
    let seconds =
        ["used_cpu_sys", "used_cpu_user"].iter().map(|name| field(&answer, name)?.parse::<f64>().ok());
    let seconds = seconds.sum::<Option<f64>>().ok_or("INFO cpu lacks the processor times")?;
    Ok(Duration::try_from_secs_f64(seconds)?)
}

/// A field of an `INFO` answer, or of a file of the kernel's that is written alike.
fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
