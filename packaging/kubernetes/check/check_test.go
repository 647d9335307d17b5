// Package check holds the manifests of the folder above against Kubernetes' own code: they decode strictly
// into the API's types, and pass the API server's defaulting and validation and the Pod Security Standard
// that their namespace enforces. It is a module of its own: none of this enters Curfew's programs.
package check

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	networkingvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	"k8s.io/kubernetes/pkg/apis/policy"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	policyvalidation "k8s.io/kubernetes/pkg/apis/policy/validation"
	"k8s.io/pod-security-admission/api"
	podsecurity "k8s.io/pod-security-admission/policy"
)

// decode reads one manifest strictly, as `kubectl apply --validate=strict` does.
func decode(document []byte) (runtime.Object, *schema.GroupVersionKind, error) {
	s := json.NewSerializerWithOptions(json.DefaultMetaFactory, legacyscheme.Scheme, legacyscheme.Scheme,
		json.SerializerOptions{Yaml: true, Strict: true})
	return s.Decode(document, nil, nil)
}

// check is what the API server would say of a manifest.
func check(document []byte) (runtime.Object, error) {
	o, kind, err := decode(document)
	if err != nil {
		return nil, err
	}
	given := o.DeepCopyObject()
	legacyscheme.Scheme.Default(o)
	internal, err := legacyscheme.Scheme.UnsafeConvertToVersion(o,
		schema.GroupVersion{Group: kind.Group, Version: runtime.APIVersionInternal})
	if err != nil {
		return nil, err
	}
	errs, known := validate(internal)
	if !known {
		return nil, fmt.Errorf("nothing here validates a %s", kind)
	}
	return given, errors.Join(errs.ToAggregate(), secure(given))
}

func validate(o runtime.Object) (errs field.ErrorList, known bool) {
	switch o := o.(type) {
	case *core.Namespace:
		return corevalidation.ValidateNamespace(o), true
	case *core.ServiceAccount:
		return corevalidation.ValidateServiceAccount(o), true
	case *core.ConfigMap:
		return corevalidation.ValidateConfigMap(o), true
	case *core.Secret:
		return corevalidation.ValidateSecret(o), true
	case *core.Service:
		allocate(o)
		return corevalidation.ValidateServiceCreate(o), true
	case *apps.StatefulSet:
		return appsvalidation.ValidateStatefulSet(o,
			pod.GetValidationOptionsFromPodTemplate(&o.Spec.Template, nil)), true
	case *networking.NetworkPolicy:
		return networkingvalidation.ValidateNetworkPolicy(o,
			networkingvalidation.NetworkPolicyValidationOptions{}), true
	case *policy.PodDisruptionBudget:
		return policyvalidation.ValidatePodDisruptionBudget(o,
			policyvalidation.PodDisruptionBudgetValidationOptions{}), true
	}
	return nil, false
}

// allocate gives a service what the API server draws for it before it validates.
func allocate(s *core.Service) {
	if s.Spec.ClusterIP == "" {
		s.Spec.ClusterIP = "10.96.0.7"
	}
	single := core.IPFamilyPolicySingleStack
	s.Spec.ClusterIPs, s.Spec.IPFamilies = []string{s.Spec.ClusterIP}, []core.IPFamily{core.IPv4Protocol}
	s.Spec.IPFamilyPolicy = &single
	if s.Spec.Type == core.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == core.ServiceExternalTrafficPolicyLocal {
		s.Spec.HealthCheckNodePort = 30007
	}
}

// secure holds pods against the restricted standard, in its newest version.
func secure(o runtime.Object) error {
	set, ok := o.(*appsv1.StatefulSet)
	if !ok {
		return nil
	}
	evaluator, err := podsecurity.NewEvaluator(podsecurity.DefaultChecks(), nil)
	if err != nil {
		return err
	}
	result := podsecurity.AggregateCheckResults(evaluator.EvaluatePod(
		api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()},
		&set.Spec.Template.ObjectMeta, &set.Spec.Template.Spec))
	if !result.Allowed {
		return fmt.Errorf("not restricted: %s", result.ForbiddenDetail())
	}
	return nil
}

// documents are the manifests of one file.
func documents(t *testing.T, data []byte) (out [][]byte) {
	t.Helper()
	for r := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data))); ; {
		one, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, one)
	}
}

func manifests(t *testing.T) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob("../*.yaml")
	if err != nil || len(names) == 0 {
		t.Fatalf("%d files, %v", len(names), err)
	}
	out := make(map[string][]byte)
	for _, name := range names {
		if out[filepath.Base(name)], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestManifests(t *testing.T) {
	var kinds []string
	var set *appsv1.StatefulSet
	services := make(map[string]*corev1.Service)
	for name, data := range manifests(t) {
		for _, one := range documents(t, data) {
			o, err := check(one)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			kinds = append(kinds, o.GetObjectKind().GroupVersionKind().Kind)
			switch o := o.(type) {
			case *appsv1.StatefulSet:
				set = o
			case *corev1.Service:
				services[o.Name] = o
			}
		}
	}
	slices.Sort(kinds)
	if got := strings.Join(kinds, " "); got != "ConfigMap Namespace NetworkPolicy PodDisruptionBudget Secret "+
		"Service Service ServiceAccount StatefulSet" {
		t.Errorf("the manifests are %s", got)
	}
	// What the API does not compare.
	if set == nil || services[set.Spec.ServiceName] == nil {
		t.Fatal("the StatefulSet's service is not among the manifests")
	}
	if *set.Spec.Replicas != 1 {
		t.Errorf("%d replicas on one SQLite file", *set.Spec.Replicas)
	}
	for _, s := range services {
		for key, value := range s.Spec.Selector {
			if set.Spec.Template.Labels[key] != value {
				t.Errorf("service %s selects %s=%s, which the pod has not", s.Name, key, value)
			}
		}
		if port := s.Spec.Ports[0].TargetPort.String(); port != set.Spec.Template.Spec.Containers[0].Ports[0].Name {
			t.Errorf("service %s targets port %s", s.Name, port)
		}
	}
}

// The check can fail.
func TestBrokenManifests(t *testing.T) {
	all := manifests(t)
	for name, b := range map[string]struct{ file, old, new, want string }{
		"unknown field":        {"40-statefulset.yaml", "  replicas: 1", "  replicaCount: 1", "unknown field"},
		"field twice":          {"40-statefulset.yaml", "  replicas: 1", "  replicas: 1\n  replicas: 2", "already"},
		"wrong type":           {"40-statefulset.yaml", "  replicas: 1", "  replicas: one", "cannot unmarshal"},
		"selector":             {"40-statefulset.yaml", "    matchLabels:\n      app.kubernetes.io/name: curfew-controlplane", "    matchLabels:\n      app.kubernetes.io/name: other", "selector"},
		"no such volume":       {"40-statefulset.yaml", "- name: config\n              mountPath", "- name: settings\n              mountPath", "settings"},
		"no such named port":   {"40-statefulset.yaml", "- name: curfew\n              containerPort", "- name: curfew-controlplane\n              containerPort", "must be no more than 15"},
		"probe of nothing":     {"40-statefulset.yaml", "tcpSocket:\n              port: curfew\n            periodSeconds: 5", "periodSeconds: 5", "handler"},
		"root":                 {"40-statefulset.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"},
		"privilege escalation": {"40-statefulset.yaml", "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "allowPrivilegeEscalation"},
		"capabilities":         {"40-statefulset.yaml", "drop: [ALL]", "drop: [NET_RAW]", "unrestricted capabilities"},
		"seccomp":              {"40-statefulset.yaml", "type: RuntimeDefault", "type: Unconfined", "seccompProfile"},
		"access mode":          {"40-statefulset.yaml", "[ReadWriteOncePod]", "[ReadWriteOnce, ReadWriteOncePod]", "ReadWriteOncePod"},
		"service type":         {"50-service.yaml", "type: LoadBalancer", "type: ClusterIP", "externalTrafficPolicy"},
		"key of the config":    {"20-config.yaml", "admin.pub:", "admin/pub:", "a valid config key"},
		"name":                 {"10-serviceaccount.yaml", "name: curfew-controlplane\n", "name: Curfew\n", "lowercase RFC 1123"},
		"policy of ports":      {"60-networkpolicy.yaml", "- port: curfew\n          protocol: TCP", "- port: curfew\n          protocol: ICMP", "ICMP"},
		"budget both ways":     {"70-poddisruptionbudget.yaml", "maxUnavailable: 1", "maxUnavailable: 1\n  minAvailable: 1", "cannot be both set"},
		"another API":          {"70-poddisruptionbudget.yaml", "policy/v1", "policy/v1beta9", "no kind"},
	} {
		t.Run(name, func(t *testing.T) {
			text := string(all[b.file])
			if !strings.Contains(text, b.old) {
				t.Fatalf("%s does not have %q", b.file, b.old)
			}
			var errs []error
			for _, one := range documents(t, []byte(strings.ReplaceAll(text, b.old, b.new))) {
				_, err := check(one)
				errs = append(errs, err)
			}
			if err := errors.Join(errs...); err == nil || !strings.Contains(err.Error(), b.want) {
				t.Errorf("it says %v, want %q", err, b.want)
			}
		})
	}
}
