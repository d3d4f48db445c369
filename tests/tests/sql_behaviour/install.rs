//! Ten nodes find an empty database at once.

use backplane_tests::sql::Database;
use futures::future::join_all;

use crate::member::Member;

const NODES: usize = 10;

async fn ten_at_once(database: Database) {
    // Each has its own bus, as a process of its own would.
    let mut members = join_all((0..NODES).map(|_| Member::open(database.bus("")))).await;
    assert_eq!(database.number("SELECT count(*) FROM backplane_meta").await, 1, "there is one log");
    for speaker in [0, NODES - 1] {
        let text = format!("from {speaker}");
        members[speaker].says(&text).await;
        for listener in &mut members {
            listener.hears(&text).await;
        }
    }
    for member in &mut members {
        assert_eq!((member.further_gaps(), member.reconnects()), (Vec::new(), 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_nodes_install_one_log_on_postgres() {
    let Some(database) = Database::postgres().await else { return };
    ten_at_once(database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_nodes_install_one_log_on_mariadb() {
    let Some(database) = Database::mariadb().await else { return };
    ten_at_once(database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_nodes_install_one_log_on_sqlite() {
    ten_at_once(Database::sqlite()).await;
}
