use super::*;

/// The sample without the proxy: what the proxy does for a login is put into the login by hand.
#[tokio::test]
async fn the_servers_of_the_sample_keep_the_tenants_apart() {
    let servers = Servers::start(&Binaries::find().unwrap()).await.unwrap();
    servers.fill("secret").await.unwrap();
    for tenant in TENANTS {
        let server = servers
            .named(tenant.server.unwrap_or(tenant.place.servers[0]))
            .unwrap();
        let mut config = Config::new();
        config
            .host(server.host())
            .port(server.port())
            .user(tenant.server_login())
            .password("secret")
            .dbname(tenant.database())
            .options(format!(
                "-c app.tenant_id={} -c search_path={}",
                tenant.name,
                tenant.schema()
            ));
        let client = checks::connect(&config).await.unwrap();
        if tenant.server.is_none() {
            client.batch_execute(&tenant.insert(None)).await.unwrap();
        }

        let place = checks::place(&client).await.unwrap();
        assert_eq!(
            (place.server.as_str(), place.schema),
            (server.name(), tenant.schema()),
            "{}",
            tenant.name
        );
        assert_eq!(
            checks::orders(&client).await.unwrap(),
            tenant.orders(),
            "{}",
            tenant.name
        );
        let other = Tenant::named(tenant.other).unwrap();
        for attempt in [
            checks::read_other(&client, tenant, other).await,
            checks::write_other(&client, tenant, other).await,
        ] {
            assert!(attempt.repelled, "{}: {}", tenant.name, attempt.outcome);
        }

        config.options("");
        let client = checks::connect(&config).await.unwrap();
        if tenant.place.apart == sample::Apart::Rows {
            assert_eq!(
                checks::orders(&client).await.unwrap(),
                [],
                "{} without a tenant",
                tenant.name
            );
        }
        config.password("wrong");
        assert!(checks::log_in_as_other(&config).await.repelled);
    }
    let mut config = Config::new();
    let server = servers.named("eu-1").unwrap();
    config
        .host(server.host())
        .port(server.port())
        .user("db_dunder")
        .password("secret")
        .dbname("db_soylent");
    let error = checks::connect(&config).await.err().unwrap();
    assert_eq!(error.code().unwrap().code(), "42501", "{error}");
    servers.stop().await.unwrap();
}

#[test]
fn the_config_has_every_place_and_no_gap() {
    let config = include_str!("pgtenant.yaml").replace('@', "");
    let value: serde_yaml::Value = serde_yaml::from_str(&config).unwrap();
    for tenant in TENANTS {
        let place = &value["placements"][tenant.place.name];
        assert_eq!(
            place["database"]
                .as_str()
                .unwrap()
                .replace("{tenant}", tenant.name),
            tenant.database()
        );
        assert_eq!(
            place["login"]["user"]
                .as_str()
                .unwrap()
                .replace("{tenant}", tenant.name),
            tenant.server_login()
        );
        assert!(Tenant::named(tenant.other).is_some_and(|other| other.name != tenant.name));
        assert!(
            Tenant::named(&tenant.database()).is_none(),
            "a database named like a tenant"
        );
    }
}
