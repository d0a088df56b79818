# A controller's around_action on ruby-pg, as Rails applications write it. DSN, and of each tenant the bodies that it must
# find (JSON).
require 'json'
require 'pg'

DSN, JSON_TEXT = ARGV
TENANTS = JSON.parse(JSON_TEXT)
SELECT = 'SELECT body FROM items WHERE id < $1 ORDER BY id'.freeze

def check(found, expected, what)
  raise "#{what}: #{found.inspect} is not #{expected.inspect}" unless found == expected
end

# What fails is rolled back, and the tenant with it.
def around_action(connection, tenant)
  connection.transaction do
    connection.exec_params("SELECT set_config('app.tenant_id', $1, true)", [tenant])
    yield
  end
end

# The other way that is in use: the session's, put back when the request is over.
def switch(connection, tenant)
  connection.exec("SET app.tenant_id = '#{connection.escape_string(tenant)}'")
  yield
ensure
  connection.exec('RESET app.tenant_id')
end

connection = PG.connect(DSN)
connection.prepare('bodies', SELECT)
5.times do
  TENANTS.each do |name, bodies|
    found = around_action(connection, name) { connection.exec_prepared('bodies', [900]).column_values(0) }
    check(found, bodies, name)
    found = switch(connection, name) { connection.exec_params(SELECT, [900]).column_values(0) }
    check(found, bodies, name)
    begin
      around_action(connection, name) { connection.exec('SELECT 1/0') }
      raise 'a division by zero passed'
    rescue PG::DivisionByZero
      # As it should.
    end
  end
end
begin
  around_action(connection, 'nobody') { connection.exec('SELECT 1') }
  raise 'a tenant that there is not was chosen'
rescue PG::InsufficientPrivilege
  # As it should.
end
connection.close
puts 'ok'
