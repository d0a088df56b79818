//! What the simulation has found, each as the shortest plan that shows it.

use crate::plan::{Client, Fault, Leave, Message, Plan, Step, What, Who};
use crate::run::play;

fn query(text: &str) -> [Step; 2] {
    [Step::Say(vec![Message::Query(text.to_owned())]), Step::Wait]
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

/// Plays a plan over many networks. Nobody may see anything that clients of direct PostgreSQL do
/// not.
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

#[test]
fn what_a_client_said_behind_a_reset_before_it_left_finds_its_context() {
    let steps = [
        Step::Say(vec![Message::Query("RESET ALL".to_owned())]),
        Step::Say(vec![
            Message::Query("SHOW work_mem".to_owned()),
            Message::Query("SELECT '~@.behind~'".to_owned()),
        ]),
    ];
    let mut clients = Vec::new();
    for tenant in 0..4 {
        clients.push(client(Who::Tenant(tenant), steps.clone()));
    }
    nobody_sees_anything_odd(&clients, &[]);
}

#[test]
fn what_is_said_behind_a_reset_waits_for_the_context_also_while_a_notification_is_on_its_way() {
    let mut listener = query("LISTEN news").to_vec();
    for _ in 0..12 {
        listener.push(Step::Say(vec![
            Message::Query("RESET ALL".to_owned()),
            Message::Query("SELECT '~@.behind~'".to_owned()),
        ]));
        listener.push(Step::Wait);
    }
    let mut sender = Vec::new();
    for _ in 0..60 {
        sender.extend(query("NOTIFY news, '~@.news~'"));
    }
    let clients = [
        client(Who::Tenant(0), listener),
        client(Who::Tenant(1), sender.clone()),
        client(Who::Tenant(2), sender),
    ];
    nobody_sees_anything_odd(&clients, &[]);
}
