//! What a hostile client tries: choices that are smuggled past the proxy, commands that it reads
//! otherwise than PostgreSQL, and refusals that leave half of a transaction behind.

use super::{BODIES, PARTLY, WEB, extended, log_in, setup, state, status};
use crate::harness::{Running, Setup, tenant, world};
use crate::wire::{bind, column, copy_data, errors, execute, message, parse, query, rows, sync};

/// A proxy whose pool is of this posture.
async fn in_posture(posture: &str, setup: Setup) -> Running {
    let context = format!("posture: {posture}, context: {{ app.tenant_id");
    let yaml = setup.yaml(world().await);
    Running::start(&yaml.replace("posture: plain, context: { app.tenant_id", &context))
}

/// Texts that say `own`, and in PostgreSQL's reading also `other`, before they read the rows.
fn smuggling(own: &str, other: &str) -> Vec<String> {
    // PostgreSQL goes on with a string behind a comment that a newline ends.
    let joints = ["--\n ", " -- x\n", "\n-- x\n", " --\n--\n "];
    let spellings = [
        "app . tenant_id",
        "\"app\".\"tenant_id\"",
        "app.U&\"tenant\\005fid\"",
    ];
    let hidden = |joint: &str, name: &str| {
        format!("SELECT E'a' {joint}'b\\', ' ; SET {name} = $${other}$$; {BODIES}; --'")
    };
    let mut texts = Vec::new();
    for joint in joints {
        for name in spellings {
            texts.push(format!(
                "SET app.tenant_id = '{own}'; {}",
                hidden(joint, name)
            ));
        }
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn no_second_choice_is_smuggled_in_a_string() {
    let others = tenant("t07").bodies();
    for pooling in ["transaction", "session"] {
        let setup = Setup {
            pooling,
            ..Setup::default()
        };
        let proxy = in_posture("guarded", setup).await;
        let mut wire = proxy.raw(&tenant("t06")).await;
        for text in smuggling("t06", "t07") {
            let frames = wire.query(&text).await;
            let leaked = rows(&frames).iter().any(|row| others.contains(row));
            assert!(!leaked, "{pooling}: {text}");
            assert_eq!(wire.column(BODIES).await, tenant("t06").bodies(), "{text}");
        }
    }
    let others = tenant("t01").bodies();
    let proxy = setup(PARTLY).start().await;
    let mut wire = log_in(&proxy, None).await;
    for encoding in ["UTF8", "SJIS"] {
        wire.query("SET app.tenant_id = 't00'").await;
        let _ = wire
            .query(&format!("SET client_encoding = '{encoding}'"))
            .await;
        let mut texts = smuggling("t00", "t01");
        // In SJIS the backslash is the second half of a character.
        texts.push(format!(
            "SET app.tenant_id = 't00'; SELECT E'\u{3043}\\'; SET app.U&\"tenant\\005fid\" = $$t01$$; {BODIES}; --'"
        ));
        for text in texts {
            let frames = wire.query(&text).await;
            let leaked = rows(&frames).iter().any(|row| others.contains(row));
            assert!(!leaked, "{encoding}: {text}");
        }
    }
}

/// While a pipeline turns `standard_conforming_strings` off, a text in it is read by the new rules.
#[tokio::test(flavor = "multi_thread")]
async fn no_choice_is_smuggled_while_strings_change() {
    let others = tenant("t01").bodies();
    let proxy = setup(PARTLY).start().await;
    let hidden = "SELECT '\\' /*', set_config($a$app.tenant_id$a$, $a$t01$a$, false) --*/";
    let turns = "SET standard_conforming_strings = off";
    for batch in [
        [
            extended(turns, &[]),
            extended(hidden, &[]),
            extended(BODIES, &[]),
            sync(),
        ]
        .concat(),
        [query(turns), query(hidden), query(BODIES)].concat(),
        [
            extended(turns, &[]),
            sync(),
            extended(hidden, &[]),
            extended(BODIES, &[]),
            sync(),
        ]
        .concat(),
    ] {
        let mut wire = log_in(&proxy, None).await;
        wire.query("SET app.tenant_id = 't00'").await;
        wire.send(&batch).await;
        wire.send(&query("SELECT 'last'")).await;
        let mut seen = Vec::new();
        while !seen.contains(&"last".to_owned()) {
            seen.extend(rows(&wire.until_ready().await));
        }
        assert!(!seen.iter().any(|row| others.contains(row)), "{seen:?}");
        let seen = rows(&wire.query(BODIES).await);
        assert!(!seen.iter().any(|row| others.contains(row)), "{seen:?}");
    }
}

/// What was prepared by a message may be run by SQL as well, with other values.
#[tokio::test(flavor = "multi_thread")]
async fn what_sets_is_not_run_by_execute() {
    let sets = "SELECT set_config('app.tenant_id', $1, false)";
    let fixed = "SELECT set_config('app.tenant_id', '{}', false)";
    for (is_application, own, other) in [(false, "t06", "t07"), (true, "t00", "t01")] {
        for posture in ["plain", "guarded"] {
            if !is_application && posture == "plain" {
                continue;
            }
            let sections = if is_application { PARTLY } else { "" };
            let proxy = in_posture(posture, setup(sections)).await;
            let mut wire = match is_application {
                true => log_in(&proxy, None).await,
                false => proxy.raw(&tenant(own)).await,
            };
            wire.query(&format!("SET app.tenant_id = '{own}'")).await;
            let fixed = fixed.replace("{}", other);
            wire.send(&[parse("p", sets), sync(), parse("q", &fixed), sync()].concat())
                .await;
            wire.until_ready().await;
            wire.until_ready().await;
            wire.send(&[bind("", "p", &[Some(own)]), execute("", 0), sync()].concat())
                .await;
            wire.until_ready().await;
            let long = " ".repeat(70_000);
            for run in [
                format!("EXECUTE p('{other}'); {BODIES}"),
                format!("EXECUTE q; {BODIES}"),
                format!("EXPLAIN ANALYZE EXECUTE p('{other}'); {BODIES}"),
                format!("BEGIN; EXECUTE p('{other}'); {BODIES}; COMMIT"),
            ] {
                let frames = wire.query(&run).await;
                let leaked = rows(&frames)
                    .iter()
                    .any(|row| tenant(other).bodies().contains(row));
                assert!(!leaked, "{posture} {is_application}: {run}");
                wire.query("ROLLBACK").await;
                let seen = wire.column(BODIES).await;
                assert_eq!(
                    seen,
                    tenant(own).bodies(),
                    "{posture} {is_application}: {run}"
                );
            }
            // By messages, and by a text that is too long to be held.
            let run = format!("EXECUTE p('{other}')");
            wire.send(&[extended(&run, &[]), extended(BODIES, &[]), sync()].concat())
                .await;
            let seen = rows(&wire.until_ready().await);
            let leaked = seen.iter().any(|row| tenant(other).bodies().contains(row));
            assert!(!leaked, "{posture} {is_application}: by messages");
            let run = format!("EXECUTE p('{other}'); {BODIES} --{long}");
            let _ = wire.try_send(&query(&run)).await;
            let frames = wire.until_ready().await;
            let leaked = rows(&frames)
                .iter()
                .any(|row| tenant(other).bodies().contains(row));
            assert!(!leaked, "{posture} {is_application}: long");
        }
    }
}

/// The guard of the place holds for what an application sets by parameters, too.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_by_parameters_is_guarded() {
    let proxy = in_posture("guarded", setup(WEB)).await;
    let mut wire = log_in(&proxy, None).await;
    wire.query("SET app.tenant_id = 't00'").await;
    let by_parameters = "SELECT set_config($1, $2, true)";
    let two = "SELECT set_config('app.tenant_id', 't00', true), set_config($1, $2, true)";
    let json = "select set_config(el->>0, el->>1, true) from json_array_elements($1::json) el";
    for (name, value) in [
        ("role", "none"),
        ("Session_Authorization", "app"),
        ("pgtenant.context", "x"),
        ("client_encoding", "SJIS"),
        ("standard_conforming_strings", "off"),
    ] {
        let pairs = format!(r#"[["app.tenant_id","t00"],["{name}","{value}"]]"#);
        let literal = format!("SELECT set_config('{name}', '{value}', true)");
        for (sql, values) in [
            (by_parameters, &[Some(name), Some(value)][..]),
            (two, &[Some(name), Some(value)]),
            (json, &[Some(&*pairs)]),
            (&*literal, &[]),
        ] {
            wire.send(&[extended(sql, values), sync()].concat()).await;
            let frames = wire.until_ready().await;
            let error = frames.iter().find(|frame| frame.tag == b'E');
            let state = error.map(crate::wire::Frame::sqlstate).unwrap_or_default();
            assert_eq!(state, "42501", "{sql} {name}");
            assert_eq!(wire.column(BODIES).await, tenant("t00").bodies());
        }
    }
    for (sql, values) in [
        (by_parameters, &[Some("work_mem"), Some("5MB")][..]),
        (two, &[Some("work_mem"), Some("5MB")]),
        (json, &[Some(r#"[["app.tenant_id","t00"],["a.b","c"]]"#)]),
    ] {
        wire.send(&[extended(sql, values), sync()].concat()).await;
        assert_eq!(errors(&wire.until_ready().await), [""; 0], "{sql}");
    }
}

/// What ends the transaction of a choice in a text that is not read to its end, or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_choice_does_not_outlive_its_transaction_in_a_text_that_is_not_read() {
    let proxy = setup(WEB).start().await;
    let mut wire = log_in(&proxy, None).await;
    let long = format!("/* {} */", "x".repeat(70_000));
    let name = "n".repeat(70);
    for unread in [
        "SELECT U&'a!0041' UESCAPE '!'",
        "SELECT X'41'",
        "SELECT B'1'",
        &format!("SELECT 1 AS \"{name}\""),
        &format!("SELECT {long} 1"),
    ] {
        for end in [
            "COMMIT",
            "ROLLBACK",
            "END",
            "/**/ abort work",
            "COMMIT; BEGIN",
        ] {
            let mut wire = log_in(&proxy, None).await;
            for statement in ["BEGIN", "SET LOCAL app.tenant_id = 't00'", "SELECT 1"] {
                assert_eq!(state(&mut wire, statement).await, "");
            }
            let text = format!("{unread}; {end}; {BODIES}");
            let _ = wire.try_send(&query(&text)).await;
            let frames = wire.until_ready().await;
            let leaked = rows(&frames)
                .iter()
                .any(|row| tenant("t00").bodies().contains(row));
            assert!(!leaked, "{end}: {}", &text[..40]);
        }
    }
    // Without an end of the transaction they run.
    for statement in ["BEGIN", "SET LOCAL app.tenant_id = 't00'", "SELECT 1"] {
        assert_eq!(state(&mut wire, statement).await, "");
    }
    for text in [
        format!("SELECT X'41'; {BODIES}"),
        format!("SELECT 'commit {long}'; {BODIES} -- commit"),
    ] {
        let frames = wire.query(&text).await;
        assert_eq!(errors(&frames), [""; 0]);
        assert!(rows(&frames).ends_with(&tenant("t00").bodies()));
    }
    assert_eq!(status(&mut wire, "COMMIT").await, 'I');
}

/// Names of savepoints that are easily misread.
#[tokio::test(flavor = "multi_thread")]
async fn a_savepoint_of_any_name_takes_a_choice_back() {
    let proxy = setup(WEB).start().await;
    let (long, other) = ("n".repeat(70), format!("{}x", "n".repeat(69)));
    for (make, back) in [
        ("SAVEPOINT savepoint", "ROLLBACK TO savepoint"),
        ("SAVEPOINT savepoint", "ROLLBACK TO SAVEPOINT savepoint"),
        ("SAVEPOINT \"savepoint\"", "ROLLBACK WORK TO Savepoint"),
        (
            "SAVEPOINT transaction",
            "ROLLBACK TRANSACTION TO transaction",
        ),
        (
            &format!("SAVEPOINT {long}"),
            &format!("ROLLBACK TO {other}"),
        ),
        (
            &format!("SAVEPOINT \"{long}\""),
            &format!("ROLLBACK TO {long}"),
        ),
        ("SAVEPOINT d\u{e9}j\u{e0}", "ROLLBACK TO d\u{e9}j\u{e0}"),
        ("SAVEPOINT U&\"a!0062\" UESCAPE '!'", "ROLLBACK TO ab"),
        ("SAVEPOINT ab", "ROLLBACK TO U&\"a!0062\" UESCAPE '!'"),
    ] {
        for served in [false, true] {
            let mut wire = log_in(&proxy, None).await;
            let mut refused = false;
            wire.query("BEGIN").await;
            if served {
                wire.query("SELECT 1").await;
            }
            for statement in [make, "SET LOCAL app.tenant_id = 't00'", back] {
                refused |= !errors(&wire.query(statement).await).is_empty();
            }
            let frames = wire.query(BODIES).await;
            assert_eq!(rows(&frames), [""; 0], "{make}, {back}");
            let is_unread = make.contains('!') || back.contains('!') || make.contains('"');
            if !served && !is_unread {
                assert!(!refused, "{make}, {back}");
                assert_eq!(errors(&frames), [""; 0], "{make}, {back}");
            }
        }
    }
}

/// A transaction of which nothing was run because no server connection was free is still one.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_leaves_the_transaction_open() {
    let setup = Setup {
        pool_size: 1,
        ..setup(&format!("{WEB}\ntimeouts: {{ checkout: 300ms }}"))
    };
    let proxy = setup.start().await;
    let mut holder = proxy.raw(&tenant("t01")).await;
    let mut wire = log_in(&proxy, None).await;
    wire.query("SET app.tenant_id = 't00'").await;
    holder.query("BEGIN").await;
    holder.query("SELECT 1").await;
    for statement in ["BEGIN", "SAVEPOINT s"] {
        assert_eq!(status(&mut wire, statement).await, 'T');
    }
    assert_ne!(state(&mut wire, "SELECT 1").await, "");
    holder.query("COMMIT").await;
    assert_eq!(state(&mut wire, "SELECT 1").await, "25P02");
    assert_eq!(status(&mut wire, "ROLLBACK TO s").await, 'T');
    assert_eq!(status(&mut wire, "SELECT 1").await, 'T');
    assert_eq!(status(&mut wire, "ROLLBACK TO s").await, 'T');
    assert_eq!(status(&mut wire, "COMMIT").await, 'I');
    let frames = wire.query("COMMIT").await;
    assert_eq!(frames[0].tag, b'N', "it was over");
}

/// PostgreSQL passes over some messages; what was said before them stands.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_passed_over_changes_nothing() {
    let proxy = setup(WEB).start().await;
    let mut wire = log_in(&proxy, None).await;
    wire.query("SET app.tenant_id = 't00'").await;
    // Data of a COPY that is none.
    for stray in [
        copy_data(b"1\n"),
        copy_data(&[b'x'; 100_000]),
        message(b'c', &[]),
    ] {
        wire.send(&[query("BEGIN"), stray, query("SELECT 1")].concat())
            .await;
        wire.until_ready().await;
        let frames = wire.until_ready().await;
        assert_eq!(column(&frames), ["1"]);
        assert_eq!(frames.last().expect("ready").body, b"T");
        assert_eq!(status(&mut wire, "ROLLBACK").await, 'I');
    }
    // What comes behind an error, up to the Sync.
    let unclear = "SELECT set_config('app.tenant_id', lower('T00'), true)";
    let long = format!("SELECT 'run' -- {}", "x".repeat(1_000_000));
    for passed in [
        query(&long),
        query("SELECT 'run'"),
        extended(&long, &[]),
        parse("", &long),
    ] {
        wire.send(&[parse("", unclear), passed, sync(), query("SELECT 'after'")].concat())
            .await;
        let frames = wire.until_ready().await;
        assert_eq!((rows(&frames).len(), errors(&frames).len()), (0, 1));
        assert_eq!(column(&wire.until_ready().await), ["after"]);
    }
}

/// What the proxy keeps of a transaction that no server has is limited.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_limited() {
    let proxy = setup(WEB).start().await;
    for text in ["SAVEPOINT s", "SET LOCAL work_mem = '5MB'"] {
        let mut wire = log_in(&proxy, None).await;
        wire.query("BEGIN").await;
        let many = query(text).repeat(5000);
        wire.send(&many).await;
        let mut states = Vec::new();
        for _ in 0..5000 {
            let frames = wire.until_ready().await;
            let error = frames.iter().find(|frame| frame.tag == b'E');
            states.extend(error.map(crate::wire::Frame::sqlstate));
        }
        states.dedup();
        assert_eq!(states, ["54000", "25P02"], "{text}");
        assert_eq!(status(&mut wire, "ROLLBACK").await, 'I');
        assert_eq!(wire.column("SELECT 1").await, ["1"]);
    }
}

/// What comes in the middle of a COPY ends it, and is served as what is left of the transaction
/// says.
#[tokio::test(flavor = "multi_thread")]
async fn what_ends_a_copy_finds_the_transaction_as_it_is_then() {
    let proxy = setup(WEB).start().await;
    for good in [true, false] {
        let mut wire = log_in(&proxy, None).await;
        for statement in ["BEGIN", "SET LOCAL app.tenant_id = 't00'", "SELECT 1"] {
            assert_eq!(state(&mut wire, statement).await, "");
        }
        wire.send(&query("COPY plain (id, body) FROM STDIN")).await;
        wire.until(b'G').await;
        let data: &[u8] = if good { b"990\tx\n" } else { b"none\n" };
        let text = format!("ROLLBACK; {BODIES}");
        wire.send(&[copy_data(data), query(&text)].concat()).await;
        wire.until_ready().await;
        let frames = wire.until_ready().await;
        assert_eq!(rows(&frames), [""; 0], "{good}");
        wire.query("ROLLBACK").await;
        assert_eq!(state(&mut wire, "SET app.tenant_id = 't00'").await, "");
        assert_eq!(wire.column(BODIES).await, tenant("t00").bodies());
    }
}

/// What is sent behind a Sync, in one write with what was before it, is of another transaction.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_sync_at_once_is_for_whom_it_is_then() {
    let proxy = setup(WEB).start().await;
    let local = "SELECT set_config('app.tenant_id', $1, true)";
    let json = "select set_config(el->>0, el->>1, true) from json_array_elements($1::json) el";
    let pair = r#"[["app.tenant_id","t00"]]"#;
    let bodies = tenant("t00").bodies();
    for (sql, value) in [(local, "t00"), (json, pair)] {
        let first = [extended(sql, &[Some(value)]), extended(BODIES, &[]), sync()].concat();
        for next in [query(BODIES), [extended(BODIES, &[]), sync()].concat()] {
            let mut wire = log_in(&proxy, None).await;
            wire.send(&[first.clone(), next.clone(), next].concat())
                .await;
            let frames = wire.until_ready().await;
            assert!(rows(&frames).ends_with(&bodies), "{sql}");
            for _ in 0..2 {
                assert_eq!(rows(&wire.until_ready().await), [""; 0], "{sql}");
            }
        }
    }
    // A choice that was refused bars what comes behind it, also if that waits for the replies
    // because it might choose.
    let asks = "SELECT body, current_setting('app.tenant_id') FROM items";
    for refused in ["nobody", "b0"] {
        for next in [
            query(BODIES),
            query(asks),
            [extended(BODIES, &[]), sync()].concat(),
            [extended(asks, &[]), sync()].concat(),
        ] {
            let mut wire = log_in(&proxy, None).await;
            wire.query("SET app.tenant_id = 't00'").await;
            let first = [
                extended(BODIES, &[]),
                extended(local, &[Some(refused)]),
                sync(),
            ];
            wire.send(&[first.concat(), next.clone(), next].concat())
                .await;
            assert_eq!(errors(&wire.until_ready().await).len(), 1, "{refused}");
            for _ in 0..2 {
                let frames = wire.until_ready().await;
                assert_eq!(rows(&frames), [""; 0], "{refused}");
                assert_eq!(errors(&frames), ["42501"], "{refused}");
            }
            assert_eq!(state(&mut wire, BODIES).await, "42501");
        }
    }
}

/// What a pipeline says behind a choice that was refused is passed over, and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_choice_in_a_pipeline_leaves_nothing_behind() {
    let proxy = setup(WEB).start().await;
    let local = "SELECT set_config('app.tenant_id', $1, true)";
    let by_name = "SELECT set_config($1, $2, $3)";
    let values = [Some("app.tenant_id"), Some("t00"), Some("true")];
    for behind in [
        Vec::new(),
        extended(local, &[Some("t00")]),
        extended(by_name, &values),
        extended("SET app.tenant_id = 't00'", &[]),
        extended("BEGIN", &[]),
        extended("ROLLBACK", &[]),
        extended("SHOW app.tenant_id", &[]),
        [extended(local, &[Some("b0")]), extended(BODIES, &[])].concat(),
    ] {
        for begins in [false, true] {
            let mut wire = log_in(&proxy, None).await;
            if begins {
                wire.query("BEGIN").await;
            }
            wire.query("SET app.tenant_id = 't00'").await;
            let refused = [extended(BODIES, &[]), extended(local, &[Some("b0")])].concat();
            wire.send(&[refused, behind.clone(), sync()].concat()).await;
            assert_eq!(errors(&wire.until_ready().await).len(), 1);
            if begins {
                assert_eq!(status(&mut wire, "COMMIT").await, 'I');
            }
            assert_eq!(state(&mut wire, BODIES).await, "42501");
            assert_eq!(state(&mut wire, "SET app.tenant_id = 'b0'").await, "");
            let frames = wire.query(BODIES).await;
            assert_eq!(rows(&frames), tenant("b0").bodies());
        }
    }
}

/// A choice that was refused bars what follows, also where the server connection or the transaction
/// of the tenant that was chosen before is still there.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_choice_bars_what_is_served_already() {
    let proxy = setup(WEB).start().await;
    for by_messages in [false, true] {
        let look = match by_messages {
            true => [extended(BODIES, &[]), sync()].concat(),
            false => query(BODIES),
        };
        let mut wire = log_in(&proxy, None).await;
        wire.query("SET app.tenant_id = 'd0'").await;
        wire.query("CREATE TEMP TABLE kept (a int)").await;
        for (refused, code) in [("d1", "25001"), ("nobody", "42501")] {
            let set = format!("SET app.tenant_id = '{refused}'");
            for begins in [false, true] {
                assert_eq!(state(&mut wire, &set).await, code);
                if begins {
                    wire.query("BEGIN").await;
                }
                wire.send(&look).await;
                assert_eq!(errors(&wire.until_ready().await), ["42501"], "{refused}");
                wire.query("ROLLBACK").await;
            }
        }
        assert_eq!(state(&mut wire, "SET app.tenant_id = 'd0'").await, "");
        assert_eq!(wire.column(BODIES).await, tenant("d0").bodies());

        let mut wire = log_in(&proxy, None).await;
        for sql in [
            "BEGIN",
            "SET LOCAL app.tenant_id = 't00'",
            BODIES,
            "SAVEPOINT s",
        ] {
            assert_eq!(state(&mut wire, sql).await, "");
        }
        for (refused, code) in [("t01", "25001"), ("nobody", "42501")] {
            let set = format!("SET LOCAL app.tenant_id = '{refused}'");
            assert_eq!(state(&mut wire, &set).await, code);
            assert_eq!(state(&mut wire, "ROLLBACK TO s").await, "");
            wire.send(&look).await;
            assert_eq!(errors(&wire.until_ready().await), ["42501"], "{refused}");
            assert_eq!(state(&mut wire, "ROLLBACK TO s").await, "");
        }
        assert_eq!(
            state(&mut wire, "SET LOCAL app.tenant_id = 't00'").await,
            ""
        );
        assert_eq!(wire.column(BODIES).await, tenant("t00").bodies());
        assert_eq!(status(&mut wire, "COMMIT").await, 'I');
    }
}
