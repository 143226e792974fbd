"""record.py: writes uris.json, which says what pymongo, the bridge's driver, makes of each of these URIs.

To run it again after a change of the list:
    python3 -m venv VENV && VENV/bin/pip install 'pymongo[srv]==4.6.1' && VENV/bin/python tests/mongo_uris/record.py
The worker's unit tests read uris.json; they don't need pymongo.
"""

import json
import sys
import warnings
from pathlib import Path

import pymongo
from pymongo import uri_parser

RS = "mongodb://h/?replicaSet=rs0"
URIS = [
    # Hosts.
    "mongodb://h",
    "mongodb://h/",
    "mongodb://H.Example:27018/d",
    "mongodb://a,b:27018,c:27019/d?replicaSet=rs0",
    "mongodb://[::1]:27017/d",
    "mongodb://[2001:db8::1],h/d",
    "mongodb://%2Ftmp%2Fmongodb-27017.sock/d",
    "mongodb://h?tls=true",
    "mongodb://h,/d",
    "mongodb://h:0/d",
    "mongodb://h:99999/d",
    "mongodb://h:port/d",
    "mongodb://::1/d",
    "mongodb://",
    "mongo://h/d",
    "h:27017",
    "h",
    "a,b:27018",
    "u:p@h:27017",
    "mongodb+srv://cluster.example/d",
    "mongodb+srv://u:p@cluster.example/d?retryWrites=true&w=majority",
    "mongodb+srv://cluster.example/d?tls=false",
    "mongodb+srv://cluster.example/d?srvServiceName=custom",
    "mongodb+srv://cluster.example:27017/d",
    "mongodb+srv://a.example,b.example/d",
    "mongodb+srv://cluster.example/d?directConnection=true",
    "mongodb://h/d?srvMaxHosts=2",
    # Databases.
    "mongodb://h/d.collection",
    "mongodb://h/a%20b",
    "mongodb://h/a@b",
    "mongodb://h/a+b",
    "mongodb://h/d$",
    # User names and passwords.
    "mongodb://u:p@h/d",
    "mongodb://u:p@h/d?authSource=admin",
    "mongodb://u:p@h/?authSource=",
    "mongodb://u@h/d",
    "mongodb://u:@h/d",
    "mongodb://:p@h/d",
    "mongodb://@h/d",
    "mongodb://u:p%40ss%2Fw%3Ard@h/d",
    "mongodb://u:p+w@h/d",
    "mongodb://u:p%2Bw@h/d",
    "mongodb://u:p?w@h/d",
    "mongodb://u:p#w@h/d",
    "mongodb://u:p[w]@h/d",
    "mongodb://u:p$w&x=y;z@h/d",
    "mongodb://u:p@w@h/d",
    "mongodb://u:p:w@h/d",
    "mongodb://u:p%w@h/d",
    "mongodb://u:p/w@h/d",
    "mongodb://u:p?w@h",
    "mongodb://u:1/w@h",
    "mongodb://u:clé@h/d",
    # Separators.
    RS + "&retryWrites=true",
    RS + ";retryWrites=true",
    RS + "&retryWrites=true;w=majority",
    "mongodb://h/?retryWrites=True;w=majority",
    RS + "&retryWrites",
    RS + "&",
    # Options that come twice.
    RS + "&replicaSet=rs1",
    RS + "&REPLICASET=rs1",
    RS + "&retryWrites=false&retryWrites=true",
    # Booleans.
    RS + "&retryWrites=True",
    RS + "&retryWrites=False&retryReads=false",
    RS + "&tls=True",
    RS + "&ssl=true",
    RS + "&tls=true&ssl=true",
    RS + "&tls=true&ssl=false",
    "mongodb://h/?directConnection=true",
    "mongodb://h/?directConnection=True",
    "mongodb://a,b/?directConnection=true",
    # Encryption.
    RS + "&tlsInsecure=true",
    RS + "&tlsInsecure=false",
    RS + "&tls=true&tlsInsecure=true",
    RS + "&tls=true&tlsInsecure=true&tlsAllowInvalidCertificates=true",
    RS + "&tlsAllowInvalidCertificates=true",
    RS + "&tlsAllowInvalidCertificates=false",
    RS + "&tls=false&tlsAllowInvalidCertificates=true",
    RS + "&tls=false&tlsAllowInvalidCertificates=false",
    RS + "&tlsAllowInvalidHostnames=true&tls=true",
    RS + "&tlsAllowInvalidHostnames=false",
    RS + "&tlsDisableOCSPEndpointCheck=true&tls=true",
    RS + "&tlsCAFile=/nowhere/ca.pem",
    RS + "&ssl_cert_reqs=CERT_NONE",
    RS + "&ssl=true&ssl_cert_reqs=CERT_NONE&ssl_ca_certs=/etc/ca.pem&ssl_match_hostname=false",
    # Options of the whole client that only pymongo has.
    RS + "&uuidRepresentation=standard",
    RS + "&uuidRepresentation=pythonLegacy",
    RS + "&tz_aware=true",
    RS + "&connect=false",
    RS + "&fsync=true",
    RS + "&unicode_decode_error_handler=ignore",
    RS + "&datetime_conversion=DATETIME_AUTO",
    RS + "&compressors=zlib",
    RS + "&compressors=zlib&zlibCompressionLevel=6",
    RS + "&appName=bridge",
    "mongodb://n:k3y==@n.example:10255/?ssl=true&replicaSet=globaldb&retrywrites=false&maxIdleTimeMS=120000&appName=@n@",
    RS + "&serverMonitoringMode=poll",
    RS + "&typo=1",
    RS + "&replicaSte=rs1",
    "mongodb://h/?replicaSet=",
    # Times.
    RS + "&socketTimeoutMS=20000",
    RS + "&connectTimeoutMS=20000&serverSelectionTimeoutMS=5000",
    RS + "&waitQueueTimeoutMS=1000&waitQueueMultiple=5",
    RS + "&timeoutMS=1000",
    RS + "&heartbeatFrequencyMS=10000",
    RS + "&heartbeatFrequencyMS=100",
    RS + "&heartbeatFrequencyMS=1500.5",
    RS + "&maxIdleTimeMS=60000",
    RS + "&maxIdleTimeMS=abc",
    RS + "&localThresholdMS=15",
    # Pools.
    RS + "&maxPoolSize=100&minPoolSize=5&maxConnecting=4",
    RS + "&maxPoolSize=0",
    RS + "&maxConnecting=0",
    # Reading and writing.
    RS + "&w=majority&journal=true&wtimeoutMS=5000",
    RS + "&w=1&wtimeout=5000",
    RS + "&w=0",
    RS + "&w=-1",
    RS + "&readPreference=secondaryPreferred",
    RS + "&readPreference=secondaryPreferred&readPreferenceTags=dc:ny&readPreferenceTags=&maxStalenessSeconds=120",
    RS + "&readPreference=fastest",
    RS + "&readConcernLevel=majority",
    "mongodb://h/?loadBalanced=true",
    RS + "&loadBalanced=true",
    # Logging in.
    "mongodb://u:p@h/d?authMechanism=SCRAM-SHA-256&authSource=admin",
    "mongodb://u:p@h/d?authMechanism=DEFAULT",
    "mongodb://u:p@h/d?authMechanism=scram-sha-1",
    "mongodb://u:p@h/?authMechanism=PLAIN&authSource=$external",
    "mongodb://h/?authMechanism=MONGODB-X509&tls=true",
    "mongodb://u:p@h/?authMechanism=MONGODB-AWS",
    "mongodb://u@h/?authMechanism=GSSAPI",
    "mongodb://u:p@h/d?authMechanismProperties=SERVICE_NAME:other",
]


class Resolver:
    """Stands in for DNS."""

    def __init__(self, fqdn, *_):
        self.fqdn = fqdn

    def get_hosts(self):
        return [("node." + self.fqdn, 27017)]

    def get_options(self):
        return None


def verdict(uri):
    try:
        client = pymongo.MongoClient(uri, connect=False)
    except Exception as error:
        return {"uri": uri, "refused": type(error).__name__}
    options = client.options
    credentials = options.pool_options._credentials
    return {
        "uri": uri,
        "taken": {
            "hosts": sorted(f"{host}:{port}" for host, port in client._topology_settings.seeds),
            "database": client._MongoClient__default_database_name,
            "user": credentials and credentials.username,
            "password": credentials and credentials.password,
            "source": credentials and credentials.source,
            "replica_set": options.replica_set_name or None,
            "tls": options.pool_options._ssl_context is not None,
            "direct": bool(options.direct_connection),
            "retry_writes": options.retry_writes,
        },
    }


def main():
    uri_parser._SrvResolver = Resolver
    warnings.simplefilter("ignore")
    lines = ",\n".join(json.dumps(verdict(uri), ensure_ascii=False) for uri in URIS)
    Path(__file__).with_name("uris.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(URIS)} URIs, pymongo {pymongo.version}", file=sys.stderr)


if __name__ == "__main__":
    main()
