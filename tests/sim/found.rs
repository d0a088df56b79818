//! What the simulation has found, each as the shortest plan that shows it.

use crate::plan::{Client, Fault, Leave, Message, Plan, Step, What, Who};
use crate::run::play;

fn query(text: &str) -> [Step; 2] {
    [
        Step::Say(vec![Message::Query(text.to_owned())]),
        Step::Wait,
    ]
}

fn client(who: Who, steps: impl IntoIterator<Item = Step>) -> Client {
    let end = Step::Leave(Leave::Terminate);
    Client {
        begins: 1,
        who,
        parameters: Vec::new(),
        steps: steps.into_iter().chain([end]).collect(),
    }
}

/// Plays a plan over many networks. Nobody may see anything that clients of direct PostgreSQL do not.
fn nobody_sees_anything_odd(clients: &[Client], faults: &[Fault]) {
    for seed in 1..60 {
        let plan = Plan {
            seed,
            config: 0,
            clients: clients.to_vec(),
            faults: faults.to_vec(),
            drains: None,
        };
        let outcome = play(&plan, true);
        let told = || outcome.told.join("\n");
        assert_eq!(outcome.failure, None, "seed {seed}\n{}", told());
        assert_eq!(outcome.statistics.oddities, 0, "seed {seed}\n{}", told());
    }
}

#[test]
fn the_last_word_of_a_server_connection_that_the_client_is_done_with_is_not_the_clients() {
    let steps = [query("SELECT '~@.first~'"), query("SELECT '~@.second~'")];
    let fault = Fault {
        at: 0,
        what: What::LastWord(0),
    };
    let client = client(Who::Tenant(0), steps.into_iter().flatten());
    nobody_sees_anything_odd(&[client], &[fault]);
}
