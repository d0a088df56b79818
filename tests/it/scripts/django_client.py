"""Django: migrations of its own applications up and down, inspectdb, and the ORM in between. Prints all it finds.

Where to connect comes from libpq's environment variables.
"""

import os

import django
from django.conf import settings
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ["PGHOST"],
            "PORT": os.environ["PGPORT"],
            "USER": os.environ["PGUSER"],
            "PASSWORD": os.environ["PGPASSWORD"],
            "NAME": os.environ["PGDATABASE"],
            "OPTIONS": {"options": os.environ["PGOPTIONS"]},
        }
    },
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    USE_TZ=True,
    TIME_ZONE="Europe/Berlin",
)
django.setup()

from django.contrib.auth.models import Group, Permission, User  # noqa: E402

call_command("migrate", no_color=True)
call_command("showmigrations", plan=True, no_color=True)
call_command("inspectdb", no_color=True)

with connection.cursor() as cursor:
    # Only one migrates at a time.
    cursor.execute("SELECT pg_advisory_lock(4713)")
call_command("migrate", "auth", "0008", no_color=True)
call_command("migrate", no_color=True)
with connection.cursor() as cursor:
    cursor.execute("SELECT pg_advisory_unlock(4713)")
    print("unlocked:", cursor.fetchone())
    cursor.execute("SHOW TimeZone")
    print(cursor.fetchone())

users = [User.objects.create_user(f"user{n}", f"user{n}@example.com", "secret") for n in range(5)]
Group.objects.bulk_create([Group(name=f"group {n}") for n in range(50)])
with transaction.atomic():
    locked = User.objects.select_for_update().get(username="user1")
    locked.groups.set(Group.objects.filter(name__startswith="group 1"))
    try:
        with transaction.atomic():
            Group.objects.create(name="group 1")
    except IntegrityError as error:
        print(type(error.__cause__).__name__)
print(locked.groups.count(), Permission.objects.count())
# Outside of a transaction: a cursor WITH HOLD on the server.
print([group.name for group in Group.objects.order_by("id").iterator(chunk_size=20)])
print(Group.objects.filter(name__regex="[24]$").explain().count("\n"))

call_command("migrate", "sessions", "zero", no_color=True)
call_command("migrate", "auth", "zero", no_color=True)
call_command("migrate", "contenttypes", "zero", no_color=True)
print(sorted(connection.introspection.table_names()))
